"""Rays to pixels: which samples matter, what the field says there, what the pixel shows.

`render` works in two passes. The first, without gradients, asks only for density, front to back in
rounds, and drops rays as they become opaque; our CUDA kernels ask everywhere at once, in few
launches. The second evaluates density and colour, with gradients, at the few samples that
contribute. The field comes as callables; nothing here knows how it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nerf.compositing import composite
from nerf.cuda import compositing as compositing_cuda
from nerf.cuda import rays as ray_kernels
from nerf.sampling import Aabb, RaySamples, march, ray_jitter

__all__ = [
    "OccupiedCells",
    "RenderConfig",
    "Rendered",
    "Shader",
    "Surface",
    "VolumeField",
    "contributing",
    "render",
]

FIRST_ROUND = 8
"""Samples per ray in the first round of the density pass; later rounds grow by half each."""


POINTS_AT_ONCE = 2**21
"""The density pass of the CUDA kernels bounds its memory by asking for no more points at a time."""


class VolumeField(Protocol):
    """What can be rendered: points [N, 3] in the world to density [N] and albedo [N, C]."""

    @property
    def aabb(self) -> Aabb: ...

    def density(self, points: Tensor) -> Tensor: ...

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]: ...

    def with_normals(
        self, points: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class OccupiedCells(Protocol):
    """Which cells of the field's box may hold matter: [X, Y, Z] bool."""

    @property
    def occupied(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """How finely rays are cut, and which samples are dropped.

    step_size: length of an interval in world units; at 2.9 units from the camera a pixel of a
        64x64 image is 0.033 wide.
    transmittance_threshold: a ray is followed until less light than this is left.
    alpha_threshold: samples whose own opacity is below this receive no gradient and no colour.
    cuda_kernels: on a CUDA device, march and composite by our kernels where they work; off, by
        plain torch.
    """

    step_size: float = 0.04
    transmittance_threshold: float = 1e-4
    alpha_threshold: float = 1e-4
    cuda_kernels: bool = True

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        for name in ("transmittance_threshold", "alpha_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class Surface:
    """The rendered samples, for shading and for regularisers; S of them, packed by ray.

    positions, directions (of view, unit): [S, 3]; view_indices: [S]; density, albedo as the
    field gave them; weights: [S] render weights; normals: [S, 3] or None if not asked for.
    """

    samples: RaySamples
    positions: Tensor
    directions: Tensor
    view_indices: Tensor
    density: Tensor
    albedo: Tensor
    normals: Tensor | None
    weights: Tensor


@dataclass(frozen=True)
class Rendered:
    """Images in the rays' leading shape [...].

    rgb: [..., C], in whatever channels the field's albedo has; opacity: [...] in [0, 1]; depth:
    [...], the mean distance of what is seen, 0 where nothing is; normals: [..., 3], the weighted
    mean (not unit) of the samples', or None.
    surface: what was rendered, sample by sample.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None
    surface: Surface

    @property
    def images(self) -> Tensor:
        """rgb as [V, C, H, W], for rays of shape [V, H, W, 3]."""
        return self.rgb.movedim(-1, -3)


class Shader(Protocol):
    """Colours [S, 3] of samples from their albedo, normals, positions [S, 3] and view [S]."""

    def __call__(
        self, albedo: Tensor, normals: Tensor, positions: Tensor, view_indices: Tensor
    ) -> Tensor: ...


def render(
    field: VolumeField,
    occupancy: OccupiedCells | None,
    rays_o: Tensor,
    rays_d: Tensor,
    config: RenderConfig | None = None,
    *,
    background: Tensor | None = None,
    generator: torch.Generator | None = None,
    shader: Shader | None = None,
    with_normals: bool = False,
    create_graph: bool = False,
) -> Rendered:
    """Render rays of shape [..., 3]; the first axis counts views.

    occupancy: cells to march through, None for all. background: colours that broadcast against
    [..., C], such as [V, 1, 1, 3]; None is black. generator: shifts each ray's samples at random
    (training); None does not. shader: colours from albedo and normals; None shows the albedo.
    with_normals: fill in normals (a shader implies it); create_graph: let them carry gradients.
    """
    config = config or RenderConfig()
    shape = rays_o.shape[:-1]
    rays_per_view = max(1, shape[1:].numel())
    rays_o, rays_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
    jitter = None if generator is None else ray_jitter(rays_o.shape[0], generator, rays_o)
    samples = march(
        rays_o,
        rays_d,
        aabb=field.aabb,
        step_size=config.step_size,
        occupied=None if occupancy is None else occupancy.occupied,
        jitter=jitter,
        cuda_kernels=config.cuda_kernels,
    )
    samples, positions = contributing(field.density, samples, rays_o, rays_d, config)
    normals = None
    if with_normals or shader is not None:
        density, albedo, normals = field.with_normals(positions, create_graph=create_graph)
    else:
        density, albedo = field(positions)
    view_indices = samples.ray_indices // rays_per_view
    rgb = albedo
    if shader is not None and normals is not None:
        rgb = shader(albedo, normals, positions, view_indices)
    middle = (samples.t_starts + samples.t_ends) * 0.5
    channels = [rgb, middle[:, None]] + ([] if normals is None else [normals])
    seen, transmittance, weights = composite(
        density, torch.cat(channels, dim=-1), samples, cuda_kernels=config.cuda_kernels
    )
    opacity = 1 - transmittance
    seen, middle, mean_normal = seen.split([rgb.shape[1], 1, seen.shape[1] - rgb.shape[1] - 1], 1)
    pixels = seen.reshape(*shape, rgb.shape[1])
    if background is not None:
        pixels = pixels + transmittance.reshape(*shape, 1) * background
    depth = middle[:, 0] / opacity.clamp(min=1e-6)
    surface = Surface(
        samples,
        positions,
        rays_d.index_select(0, samples.ray_indices),
        view_indices,
        density,
        albedo,
        normals,
        weights,
    )
    return Rendered(
        pixels,
        opacity.reshape(shape),
        depth.reshape(shape),
        None if normals is None else mean_normal.reshape(*shape, 3),
        surface,
    )


@torch.no_grad()
def contributing(
    density: Callable[[Tensor], Tensor],
    samples: RaySamples,
    rays_o: Tensor,
    rays_d: Tensor,
    config: RenderConfig,
) -> tuple[RaySamples, Tensor]:
    """The samples that a pixel can show, and their midpoints [S, 3].

    Density is asked for in rounds of a few samples per ray, front to back; a ray leaves when its
    transmittance falls below the threshold, so that nothing behind a surface is evaluated. By our
    CUDA kernels it is asked for at all samples, and one kernel follows the rays.
    """
    positions = samples.positions(rays_o, rays_d)
    if config.cuda_kernels and ray_kernels.usable(positions.device, positions.dtype):
        return _contributing_at_once(density, samples, positions, config)
    keep = torch.zeros(len(samples), dtype=torch.bool, device=positions.device)
    lengths = samples.t_ends - samples.t_starts
    first, last = samples.offsets[:-1], samples.offsets[1:]
    busy = (last > first).nonzero()[:, 0]
    at, end = first[busy], last[busy]
    left = positions.new_ones(busy.shape[0])
    size = FIRST_ROUND
    while at.numel():
        index = at[:, None] + torch.arange(size, device=at.device)
        inside = index < end[:, None]
        asked = index[inside]
        tau = positions.new_zeros(index.shape)
        tau[inside] = density(positions.index_select(0, asked)) * lengths[asked]
        before = left[:, None] * torch.exp(tau - tau.cumsum(dim=1))
        alpha = -torch.expm1(-tau)
        # Said as what is not seen, so that a density of nan stays in and spoils the image openly.
        unseen = (before <= config.transmittance_threshold) | (alpha < config.alpha_threshold)
        keep[asked] = ~unseen[inside]
        left = left * torch.exp(-tau.sum(dim=1))
        at = at + size
        busy = (left > config.transmittance_threshold) & (at < end)
        at, end, left = at[busy], end[busy], left[busy]
        size += size // 2
    return samples.select(keep), positions[keep]


def _contributing_at_once(
    density: Callable[[Tensor], Tensor],
    samples: RaySamples,
    positions: Tensor,
    config: RenderConfig,
) -> tuple[RaySamples, Tensor]:
    """`contributing` with few launches, and one wait for the device."""
    parts = [density(part).float() for part in positions.split(POINTS_AT_ONCE)]
    keep, counts = compositing_cuda.visible(
        torch.cat(parts),
        samples.t_ends - samples.t_starts,
        samples.offsets,
        transmittance_threshold=config.transmittance_threshold,
        alpha_threshold=config.alpha_threshold,
    )
    index = keep.nonzero()[:, 0]
    offsets = torch.zeros_like(samples.offsets)
    torch.cumsum(counts, 0, out=offsets[1:])
    kept = RaySamples(
        samples.ray_indices.index_select(0, index),
        samples.t_starts.index_select(0, index),
        samples.t_ends.index_select(0, index),
        offsets,
    )
    return kept, positions.index_select(0, index)
