"""Small networks for points in a few dimensions; every student and teacher on mixtures uses them.

The Network contract is what any larger network is wrapped to: raw output of x's shape from x, one
or two times, and a conditioning. What the output means (x0, eps, a velocity, a jump) is decided
by what wraps it (core.distillation.students).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning

__all__ = ["MLP", "Network"]


class Network(Protocol):
    """x [B, ...], t [B], perhaps a second time s [B], perhaps a conditioning, to [B, ...]."""

    def __call__(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor: ...


class MLP(nn.Module):
    """A multilayer perceptron over x [B, D] with harmonics of its times.

    Args:
        dimension: D.
        out_dimension: Of the output; D by default.
        times: 0, 1 or 2: whether t and s are read at all.
        n_labels: Classes in cond.labels; 0 reads none. The label -1 has an embedding of its own.
        reads_guidance_scale: Whether cond.guidance_scale is an input.
        width, depth: Of the hidden layers.
    """

    harmonics = 4

    def __init__(
        self,
        dimension: int,
        *,
        out_dimension: int | None = None,
        times: int = 1,
        n_labels: int = 0,
        reads_guidance_scale: bool = False,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.times = times
        self.reads_guidance_scale = reads_guidance_scale
        self.labels = nn.Embedding(n_labels + 1, 16) if n_labels else None
        inputs = dimension + times * (1 + 2 * self.harmonics)
        inputs += int(reads_guidance_scale) + (16 if n_labels else 0)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(inputs if i == 0 else width, width), nn.SiLU()]
        layers.append(nn.Linear(width, out_dimension or dimension))
        self.layers = nn.Sequential(*layers)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        s: Tensor | None = None,
        cond: Conditioning | None = None,
    ) -> Tensor:
        """Raises ValueError where a time, label or guidance scale that it reads is missing."""
        parts = [x]
        for name, time in (("t", t), ("s", s))[: self.times]:
            if time is None:
                raise ValueError(f"This network reads {self.times} times, and {name} is missing.")
            parts.append(_harmonics(time.to(x.dtype), self.harmonics))
        if self.labels is not None:
            labels = None if cond is None else cond.labels
            if labels is None:
                labels = torch.full((len(x),), -1, device=x.device)
            parts.append(self.labels(labels + 1).to(x.dtype))
        if self.reads_guidance_scale:
            if cond is None or cond.guidance_scale is None:
                raise ValueError("This network reads cond.guidance_scale, and it is missing.")
            parts.append(cond.guidance_scale.to(x.dtype)[:, None] / 4.0)
        return self.layers(torch.cat(parts, dim=1))


def _harmonics(t: Tensor, count: int) -> Tensor:
    """t itself with sines and cosines of half turns [B, 1 + 2 count]."""
    angles = t[:, None] * (math.pi / 2) * 2.0 ** torch.arange(count, device=t.device, dtype=t.dtype)
    return torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)
