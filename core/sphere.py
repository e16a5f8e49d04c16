"""The unit sphere in D dimensions: its exponential and logarithm, geodesics, uniform noise.

Points are unit vectors [B, D], tangents at x are vectors [B, D] orthogonal to x.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exp_map", "geodesic", "log_map", "tangent_part", "uniform_on_sphere"]


def exp_map(x: Tensor, v: Tensor) -> Tensor:
    """Where the geodesic from x with velocity v is after one unit of time."""
    angle = v.norm(dim=1, keepdim=True)
    # torch.sinc is sin(pi a) / (pi a): exact at 0, and smooth there.
    return torch.cos(angle) * x + torch.sinc(angle / torch.pi) * v


def log_map(x: Tensor, y: Tensor) -> Tensor:
    """The shortest v with exp_map(x, v) = y; its length is the angle between x and y.

    Right to rounding for close and for nearly opposite points. For y = -x every direction is as
    short: the answer is then zero in length and of no use.
    """
    # |y - x| and |y + x| are 2 sin and 2 cos of half of the angle: no arccosine near 1.
    angle = 2 * torch.atan2((y - x).norm(dim=1, keepdim=True), (y + x).norm(dim=1, keepdim=True))
    across = tangent_part(x, y - x)
    length = across.norm(dim=1, keepdim=True)
    return torch.where(length > 0, angle / length.where(length > 0, 1.0), 1.0) * across


def tangent_part(x: Tensor, v: Tensor) -> Tensor:
    """v [B, D] without its component along x."""
    return v - (x * v).sum(1, keepdim=True) * x


def geodesic(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point at t [B] of the shortest path from x (t = 0) to y (t = 1), and its velocity."""
    v = log_map(x, y)
    angle = v.norm(dim=1, keepdim=True)
    t = t[:, None].to(x.dtype)
    velocity = torch.cos(t * angle) * v - angle * torch.sin(t * angle) * x
    return exp_map(x, t * v), velocity


def uniform_on_sphere(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    """n float32 draws [n, dimension] from the uniform distribution."""
    x = torch.randn(n, dimension, generator=generator, device=generator.device)
    return x / x.norm(dim=1, keepdim=True)
