"""Camera poses and rays, and the only statement of the axis convention.

World: +Y up, right-handed, the object's front faces +Z, the object is centred at the origin inside
[-1, 1]^3. Azimuth 0 puts the camera on +Z, looking at the front; azimuth grows toward +X, so that
90 degrees puts it on +X. Elevation is positive above the horizon. Camera space is OpenGL's: -Z
forward, +X right, +Y up in the image. `c2w` is [..., 4, 4] and maps camera space to the world.
Image rows run downward: pixel (row 0, column 0) is the upper left one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.transfer import to_device

__all__ = ["camera_rays", "orbit_c2w", "project"]

MAX_ELEVATION_DEG = 89.999
"""Beyond this the camera looks along the up axis and its right axis is undefined."""


def orbit_c2w(
    azimuth_deg: Tensor | Sequence[float] | float,
    elevation_deg: Tensor | Sequence[float] | float,
    distance: Tensor | Sequence[float] | float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Poses of cameras that look at the origin, [V, 4, 4].

    azimuth_deg, elevation_deg: degrees; distance: world units, positive. Numbers or [V] tensors,
    broadcast together. Elevations are clamped to +-89.999 degrees, where "up" is still defined.
    Device and dtype are the arguments' own where tensors are given and `device` is not. Poses are
    made where the arguments are and then sent to `device`, so that no device is waited for.
    """
    given = [v for v in (azimuth_deg, elevation_deg, distance) if isinstance(v, Tensor)]
    home = given[0].device if given else torch.device("cpu")
    if given:
        dtype = given[0].dtype if given[0].is_floating_point() else dtype

    def column(value: Tensor | Sequence[float] | float) -> Tensor:
        return torch.atleast_1d(torch.as_tensor(value, device=home, dtype=dtype))

    azimuth, elevation, radius = torch.broadcast_tensors(
        column(azimuth_deg), column(elevation_deg), column(distance)
    )
    if bool((radius <= 0).any()):
        raise ValueError("distance must be positive; the camera looks at the origin")
    azimuth = torch.deg2rad(azimuth)
    elevation = torch.deg2rad(elevation.clamp(-MAX_ELEVATION_DEG, MAX_ELEVATION_DEG))
    sin_az, cos_az = azimuth.sin(), azimuth.cos()
    sin_el, cos_el = elevation.sin(), elevation.cos()
    backward = torch.stack([cos_el * sin_az, sin_el, cos_el * cos_az], dim=-1)
    right = torch.stack([cos_az, torch.zeros_like(cos_az), -sin_az], dim=-1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.zeros(radius.shape[0], 4, 4, device=home, dtype=dtype)
    c2w[:, :3, 0] = right
    c2w[:, :3, 1] = up
    c2w[:, :3, 2] = backward
    c2w[:, :3, 3] = radius[:, None] * backward
    c2w[:, 3, 3] = 1
    return c2w if device is None else to_device(c2w, device)


def camera_rays(
    c2w: Tensor, fovy_deg: Tensor | float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres: origins and unit directions, each [V, H, W, 3].

    c2w: [V, 4, 4]; fovy_deg: vertical field of view, a number or [V]. Pixels are square.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    half = _half_height(c2w, fovy_deg)  # [V]
    rows = torch.arange(height, device=c2w.device, dtype=c2w.dtype)
    columns = torch.arange(width, device=c2w.device, dtype=c2w.dtype)
    y = (1 - (2 * rows + 1) / height)[None, :, None] * half[:, None, None]
    x = ((2 * columns + 1) / width - 1)[None, None, :] * half[:, None, None] * (width / height)
    x, y = torch.broadcast_tensors(x, y)
    in_camera = torch.stack([x, y, -torch.ones_like(x)], dim=-1)  # [V, H, W, 3]
    rays_d = torch.einsum("vij,vhwj->vhwi", c2w[:, :3, :3], in_camera)
    rays_d = rays_d / rays_d.norm(dim=-1, keepdim=True)
    rays_o = c2w[:, None, None, :3, 3].expand_as(rays_d)
    return rays_o, rays_d


def project(
    points: Tensor, c2w: Tensor, fovy_deg: Tensor | float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Where world points fall in the images: (pixels [V, N, 2] as (column, row), depth [V, N]).

    points: [N, 3]. The centre of pixel (row i, column j) is (j + 0.5, i + 0.5). `depth` is the
    distance along the viewing axis, positive in front of the camera; pixels of points that are not
    in front have no meaning.
    """
    offset = points[None] - c2w[:, None, :3, 3]
    in_camera = torch.einsum("vji,vnj->vni", c2w[:, :3, :3], offset)
    depth = -in_camera[..., 2]
    half = _half_height(c2w, fovy_deg)[:, None]
    x = in_camera[..., 0] / (depth * half * (width / height))
    y = in_camera[..., 1] / (depth * half)
    return torch.stack([(x + 1) * 0.5 * width, (1 - y) * 0.5 * height], dim=-1), depth


def _half_height(c2w: Tensor, fovy_deg: Tensor | float) -> Tensor:
    """tan(fovy / 2) per view, [V]."""
    # A number stays on the host until it is all that the device needs.
    fovy = torch.as_tensor(fovy_deg, dtype=c2w.dtype)
    if bool(((fovy <= 0) | (fovy >= 180)).any()):
        raise ValueError("fovy_deg must lie between 0 and 180 degrees")
    half = torch.tan(fovy * (math.pi / 360))
    if half.ndim == 0 and half.device != c2w.device:
        return c2w.new_full((c2w.shape[0],), float(half))
    return to_device(half, c2w.device).expand(c2w.shape[0])
