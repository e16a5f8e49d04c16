"""The march along rays on CUDA; `nerf.sampling` says what it gives."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from nerf.cuda import launcher
from nerf.cuda.compiler import KernelSource

__all__ = ["SOURCE", "march"]


class _Work(ctypes.Structure):
    """`Work` of march.cu, field by field."""

    _fields_ = [
        ("rays_o", ctypes.c_void_p),
        ("rays_d", ctypes.c_void_p),
        ("jitter", ctypes.c_void_p),
        ("occupied", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("ray_indices", ctypes.c_void_p),
        ("t_starts", ctypes.c_void_p),
        ("t_ends", ctypes.c_void_p),
        ("n_rays", ctypes.c_int64),
        ("low", ctypes.c_float * 3),
        ("high", ctypes.c_float * 3),
        ("cells_per_unit", ctypes.c_float * 3),
        ("resolution", ctypes.c_int32 * 3),
        ("step_size", ctypes.c_float),
        ("near", ctypes.c_float),
    ]


SOURCE = KernelSource(name="march.cu", defines=(("WORK_BYTES", ctypes.sizeof(_Work)),))


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    aabb: tuple[float, float, float, float, float, float],
    step_size: float,
    occupied: Tensor | None,
    jitter: Tensor | None,
    near: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ray_indices [S], t_starts [S], t_ends [S], offsets [R + 1]) of float32 rays [R, 3].

    Waits for the device once: how many samples there are decides what is allocated.
    """
    device, n_rays = rays_o.device, len(rays_o)
    rays_o, rays_d = rays_o.contiguous(), rays_d.contiguous()
    jitter = None if jitter is None else jitter.contiguous()
    occupied = None if occupied is None else occupied.contiguous()
    low, high = np.array(aabb[:3], np.float32), np.array(aabb[3:], np.float32)
    resolution = (1, 1, 1) if occupied is None else tuple(occupied.shape)
    scale = np.array(resolution, np.float32) / (high - low)
    counts = torch.empty(n_rays, dtype=torch.int64, device=device)
    work = _Work(
        rays_o=rays_o.data_ptr(),
        rays_d=rays_d.data_ptr(),
        jitter=0 if jitter is None else jitter.data_ptr(),
        occupied=0 if occupied is None else occupied.data_ptr(),
        counts=counts.data_ptr(),
        n_rays=n_rays,
        low=(ctypes.c_float * 3)(*low),
        high=(ctypes.c_float * 3)(*high),
        cells_per_unit=(ctypes.c_float * 3)(*scale),
        resolution=(ctypes.c_int32 * 3)(*resolution),
        step_size=step_size,
        near=near,
    )
    kernels = launcher.kernels(SOURCE, device)
    kernels.launch("march_count", n_rays, 1, work)
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64, device=device)
    torch.cumsum(counts, 0, out=offsets[1:])
    n_samples = int(offsets[-1].item())
    ray_indices = torch.empty(n_samples, dtype=torch.int64, device=device)
    t_starts = torch.empty(n_samples, dtype=torch.float32, device=device)
    t_ends = torch.empty(n_samples, dtype=torch.float32, device=device)
    work.offsets = offsets.data_ptr()
    work.ray_indices = ray_indices.data_ptr()
    work.t_starts, work.t_ends = t_starts.data_ptr(), t_ends.data_ptr()
    kernels.launch("march_fill", n_rays, 1, work)
    return ray_indices, t_starts, t_ends, offsets
