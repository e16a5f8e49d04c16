"""Where along its rays a volume is sampled: a march through the occupied cells of a grid.

Every ray is cut into intervals of one world length inside the box, shifted by a per-ray jitter;
an interval becomes a sample if the cell at its midpoint is occupied. `march` gives the samples of
all rays packed one ray after the other. `march_reference` says it in plain torch, on any device;
a Numba kernel gives the same samples on the CPU, thread by thread without the interpreter's lock,
and a kernel of our own on CUDA, ray by ray.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor

from nerf.cuda import march as march_cuda
from nerf.cuda import rays as ray_kernels
from nerf.transfer import to_device

__all__ = ["RaySamples", "intersect_aabb", "march", "march_reference", "ray_jitter"]

RAYS_AT_ONCE = 2**16
"""The plain march bounds its memory, some kilobytes a ray, by taking no more rays at a time."""

Aabb = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class RaySamples:
    """Intervals along R rays, packed ray after ray, in the order of growing distance.

    ray_indices: [S] int64; t_starts, t_ends: [S] distances along the unit direction;
    offsets: [R + 1] int64, so that ray r owns samples offsets[r] to offsets[r + 1].
    """

    ray_indices: Tensor
    t_starts: Tensor
    t_ends: Tensor
    offsets: Tensor

    @property
    def n_rays(self) -> int:
        return self.offsets.shape[0] - 1

    def __len__(self) -> int:
        return self.ray_indices.shape[0]

    def positions(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Midpoints in the world, [S, 3], from the origins and directions [R, 3]."""
        middle = (self.t_starts + self.t_ends) * 0.5
        origins = rays_o.index_select(0, self.ray_indices)
        return torch.addcmul(origins, middle[:, None], rays_d.index_select(0, self.ray_indices))

    def select(self, keep: Tensor) -> RaySamples:
        """The samples whose entry in the mask `keep` [S] is true, still packed."""
        return _packed(self.ray_indices[keep], self.t_starts[keep], self.t_ends[keep], self.n_rays)


def intersect_aabb(
    rays_o: Tensor, rays_d: Tensor, aabb: Aabb, *, near: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Distances (t_near, t_far), each [R], at which rays enter and leave a box (slab method).

    aabb: (x_min, y_min, z_min, x_max, y_max, z_max). t_near is at least `near`; a ray that misses
    the box, or has it behind, gets t_far = t_near, an empty interval.
    """
    low, high = rays_o.new_tensor(aabb[:3]), rays_o.new_tensor(aabb[3:])
    inverse = 1 / rays_d
    to_low, to_high = (low - rays_o) * inverse, (high - rays_o) * inverse
    # A ray inside a face's plane gives 0 * inf = nan there; it is within that slab, so the slab
    # puts no bound on it.
    inf = float("inf")
    enter = torch.minimum(to_low, to_high).nan_to_num(-inf, posinf=inf, neginf=-inf).amax(dim=-1)
    leave = torch.maximum(to_low, to_high).nan_to_num(inf, posinf=inf, neginf=-inf).amin(dim=-1)
    enter = enter.clamp(min=near)
    hit = (leave > enter) & torch.isfinite(leave)
    enter = torch.where(hit, enter, torch.full_like(enter, near))
    return enter, torch.where(hit, leave, enter)


def ray_jitter(n_rays: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Shift of each ray's intervals as a fraction of the step, [R], uniform in [0, 1)."""
    jitter = torch.rand(n_rays, generator=generator, device=generator.device, dtype=like.dtype)
    return to_device(jitter, like.device)


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    *,
    aabb: Aabb,
    step_size: float,
    occupied: Tensor | None = None,
    jitter: Tensor | None = None,
    near: float = 0.0,
    cuda_kernels: bool = True,
) -> RaySamples:
    """Samples of rays [R, 3] in the occupied cells of the box; nothing is differentiable.

    step_size: length of an interval, in world units; the first and the last interval of a ray are
    shortened so that all intervals together cover its way through the box exactly.
    occupied: [X, Y, Z] bool over the box, or None for a full box.
    jitter: [R] in [0, 1], see ray_jitter; None cuts from the entry point on.
    cuda_kernels: off, a CUDA device is given plain torch even where the kernels work.
    """
    if step_size <= 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    rays_o, rays_d = rays_o.detach(), rays_d.detach()
    if cuda_kernels and ray_kernels.usable(rays_o.device, rays_o.dtype):
        return RaySamples(
            *march_cuda.march(rays_o, rays_d, aabb, step_size, occupied, jitter, near)
        )
    if rays_o.device.type == "cpu" and rays_o.dtype == torch.float32:
        return _march_numba(rays_o, rays_d, aabb, step_size, occupied, jitter, near)
    return march_reference(
        rays_o,
        rays_d,
        aabb=aabb,
        step_size=step_size,
        occupied=occupied,
        jitter=jitter,
        near=near,
    )


@torch.no_grad()
def march_reference(
    rays_o: Tensor,
    rays_d: Tensor,
    *,
    aabb: Aabb,
    step_size: float,
    occupied: Tensor | None = None,
    jitter: Tensor | None = None,
    near: float = 0.0,
) -> RaySamples:
    """`march` in plain torch, on any device and dtype: a dense [R, K] lattice, then a mask."""
    n_rays = rays_o.shape[0]
    if n_rays > RAYS_AT_ONCE:
        parts = []
        for first in range(0, n_rays, RAYS_AT_ONCE):
            rows = slice(first, first + RAYS_AT_ONCE)
            part = march_reference(
                rays_o[rows],
                rays_d[rows],
                aabb=aabb,
                step_size=step_size,
                occupied=occupied,
                jitter=None if jitter is None else jitter[rows],
                near=near,
            )
            parts.append((part.ray_indices + first, part.t_starts, part.t_ends))
        indices, t_starts, t_ends = (torch.cat(column) for column in zip(*parts, strict=True))
        return _packed(indices, t_starts, t_ends, n_rays)
    t_near, t_far = intersect_aabb(rays_o, rays_d, aabb, near=near)
    shift = torch.ones_like(t_near) if jitter is None else jitter
    n_steps = int(((t_far - t_near) / step_size).amax().item()) + 2 if len(t_near) else 0
    edge = torch.arange(n_steps + 1, device=rays_o.device, dtype=rays_o.dtype) - 1
    edges = t_near[:, None] + (edge + shift[:, None]) * step_size
    edges = torch.minimum(torch.maximum(edges, t_near[:, None]), t_far[:, None])
    t_starts, t_ends = edges[:, :-1], edges[:, 1:]
    keep = t_ends > t_starts
    if occupied is not None:
        resolution = torch.tensor(occupied.shape, device=rays_o.device)
        low, high = rays_o.new_tensor(aabb[:3]), rays_o.new_tensor(aabb[3:])
        middle = (t_starts + t_ends) * 0.5
        points = rays_o[:, None] + middle[..., None] * rays_d[:, None]
        cell = ((points - low) * (resolution / (high - low))).floor().long()
        cell = torch.minimum(cell.clamp(min=0), resolution - 1)
        keep = keep & occupied[cell[..., 0], cell[..., 1], cell[..., 2]]
    ray_indices = keep.nonzero()[:, 0]
    return _packed(ray_indices, t_starts[keep], t_ends[keep], rays_o.shape[0])


def _packed(ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor, n_rays: int) -> RaySamples:
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64, device=ray_indices.device)
    torch.cumsum(torch.bincount(ray_indices, minlength=n_rays), 0, out=offsets[1:])
    return RaySamples(ray_indices, t_starts, t_ends, offsets)


def _march_numba(
    rays_o: Tensor,
    rays_d: Tensor,
    aabb: Aabb,
    step_size: float,
    occupied: Tensor | None,
    jitter: Tensor | None,
    near: float,
) -> RaySamples:
    n_rays = rays_o.shape[0]
    if occupied is None:
        occupied = torch.ones(1, 1, 1, dtype=torch.bool)
    # The box and the ray intervals come from the same torch code as the reference's, so that both
    # agree to the last bit on where a ray begins.
    t_near, t_far = intersect_aabb(rays_o, rays_d, aabb, near=near)
    shift = torch.ones_like(t_near) if jitter is None else jitter
    resolution = torch.tensor(occupied.shape)
    low, high = rays_o.new_tensor(aabb[:3]), rays_o.new_tensor(aabb[3:])
    cells_per_unit = resolution / (high - low)
    step = np.float32(step_size)
    longest = int(((t_far - t_near) / step_size).amax().item()) + 2 if n_rays else 0
    arrays = [
        tensor.contiguous().numpy()
        for tensor in (rays_o, rays_d, t_near, t_far, shift, low, cells_per_unit, occupied)
    ]
    o, d, near_, far_, shift_, low_, scale_, grid = arrays
    pool = _pool()
    parts = []
    n_parts = min(torch.get_num_threads(), max(1, n_rays // 256))
    for chunk in np.array_split(np.arange(n_rays), n_parts):
        if len(chunk):
            rows = slice(int(chunk[0]), int(chunk[-1]) + 1)
            parts.append(
                pool.submit(
                    _march_part,
                    *(o[rows], d[rows], near_[rows], far_[rows], shift_[rows]),
                    *(low_, scale_, grid, step, longest),
                )
            )
    found = [part.result() for part in parts]
    if not found:
        empty = rays_o.new_zeros(0)
        return _packed(empty.long(), empty, empty, n_rays)
    counts = torch.from_numpy(np.concatenate([part[0] for part in found]))
    t_starts = torch.from_numpy(np.concatenate([part[1] for part in found]))
    t_ends = torch.from_numpy(np.concatenate([part[2] for part in found]))
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    ray_indices = torch.repeat_interleave(torch.arange(n_rays), counts)
    return RaySamples(ray_indices, t_starts, t_ends, offsets)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="march")


# A forked child inherits the pool but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _march_part(o, d, near, far, shift, low, scale, grid, step, longest):
    counts = np.empty(o.shape[0], dtype=np.int64)
    t_starts = np.empty(o.shape[0] * longest, dtype=np.float32)
    t_ends = np.empty_like(t_starts)
    total = _march_kernel(o, d, near, far, shift, low, scale, grid, step, counts, t_starts, t_ends)
    return counts, t_starts[:total], t_ends[:total]


@numba.njit(nogil=True, cache=True)
def _march_kernel(o, d, near, far, shift, low, scale, grid, step, counts, t_starts, t_ends):
    """Appends each ray's samples to t_starts and t_ends; returns how many there are.

    The arithmetic is float32 in the reference's order, so that a midpoint on a cell's face falls
    on the same side in both.
    """
    half = np.float32(0.5)
    n = 0
    for ray in range(o.shape[0]):
        first = n
        t_near, t_far = near[ray], far[ray]
        start = t_near
        k = 0
        while start < t_far:
            end = min(max(t_near + (np.float32(k) + shift[ray]) * step, t_near), t_far)
            if end > start:
                middle = (start + end) * half
                cx = int(np.floor((o[ray, 0] + middle * d[ray, 0] - low[0]) * scale[0]))
                cy = int(np.floor((o[ray, 1] + middle * d[ray, 1] - low[1]) * scale[1]))
                cz = int(np.floor((o[ray, 2] + middle * d[ray, 2] - low[2]) * scale[2]))
                cx = min(max(cx, 0), grid.shape[0] - 1)
                cy = min(max(cy, 0), grid.shape[1] - 1)
                cz = min(max(cz, 0), grid.shape[2] - 1)
                if grid[cx, cy, cz]:
                    t_starts[n] = start
                    t_ends[n] = end
                    n += 1
            start = end
            k += 1
        counts[ray] = n - first
    return n
