"""A radiance field as what a run optimises: seen from random cameras, written as a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nerf.background import random_background
from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig
from nerf.occupancy import OccupancyConfig, OccupancyGrid
from nerf.regularizers import normal_smoothness, opacity_entropy, orientation_loss
from nerf.rendering import RenderConfig, Rendered, VolumeField, render

from .config import GenerateConfig
from .encoding import uses_cuda_kernels
from .events import Listener
from .optimize_config import OptimizeConfig
from .representation import ParameterGroup, Shown
from .seeds import step_seed
from .views import FOVY_DEG, Views, ring, sample_views

__all__ = [
    "FieldRepresentation",
    "complaint_about",
    "make_field",
    "regularization",
    "resolution_at",
]

NEIGHBOUR_DISTANCE = 0.01
"""How far apart normals are compared, in world units."""

_TABLE_DTYPES = {"float32": torch.float32, "float16": torch.float16}

FILLED = 0.71
"""Share of the views that only a field which fills its ball covers."""


class FieldRepresentation(nn.Module):
    """The field and the grid that says where it holds matter.

    Args:
        number: Which of the particles of a run it is; another one starts elsewhere.
        latent_channels: Of latents that the field holds instead of RGB; 0 is RGB.
    """

    def __init__(
        self,
        options: OptimizeConfig,
        seed: int,
        number: int,
        device: str,
        *,
        latent_channels: int = 0,
    ) -> None:
        super().__init__()
        self.options = options
        self.device = torch.device(device)
        self.field = make_field(options, seed, number, latent_channels).to(self.device)
        self.occupancy = OccupancyGrid(
            self.field.aabb,
            OccupancyConfig(
                resolution=options.occupancy_resolution,
                update_every=options.occupancy_interval,
                cuda_kernels=uses_cuda_kernels(options),
            ),
        ).to(self.device)

    @property
    def finest_side(self) -> int:
        return self.options.resolutions[-1]

    @property
    def colored(self) -> VolumeField:
        """The field with its colours in RGB."""
        return self.field

    def groups(self) -> Sequence[ParameterGroup]:
        """The hash grid, and the MLP."""
        field, options = self.field, self.options
        encoding = list(field.encoding.parameters())
        rest = [*field.hidden.parameters(), *field.head.parameters()]
        return (
            ParameterGroup(parameters=encoding, learning_rate=options.encoding_learning_rate),
            ParameterGroup(parameters=rest, learning_rate=options.mlp_learning_rate),
        )

    def prepare(self, turn: int, generator: torch.Generator) -> None:
        self.occupancy.update(turn, self.field.density, generator)

    def views(self, generator: torch.Generator) -> Views:
        options = self.options
        return sample_views(options.views_per_step, options.elevation_range_deg, generator)

    def around(self, count: int, elevation_deg: float) -> Views:
        return ring(count, elevation_deg)

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        count = len(views.azimuth_deg)
        background = random_background(count, generator, device=self.device)
        return self.shown(self.field, background, views, progress, generator)

    def shown(
        self,
        field: VolumeField,
        background: Tensor,
        views: Views,
        progress: float,
        generator: torch.Generator,
        *,
        latent: bool = False,
    ) -> Shown:
        """What `field` shows before plain backgrounds [V, C]."""
        options = self.options
        resolution = resolution_at(options, progress)
        c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance, device=self.device)
        rays_o, rays_d = camera_rays(c2w, FOVY_DEG, resolution, resolution)
        needs_normals = options.orientation_weight > 0
        rendered = render(
            field,
            self.occupancy,
            rays_o,
            rays_d,
            self._render_config(),
            background=background[:, None, None],
            generator=generator,
            with_normals=needs_normals,
            create_graph=needs_normals,
        )
        return Shown(
            images=rendered.images,
            opacity=rendered.opacity.detach(),
            samples=len(rendered.surface.samples),
            penalty=lambda g: regularization(options, self.field, rendered, g),
            latent=latent,
        )

    def _render_config(self) -> RenderConfig:
        options = self.options
        return RenderConfig(step_size=options.step_size, cuda_kernels=uses_cuda_kernels(options))

    @torch.no_grad()
    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance, device=self.device)
        rays_o, rays_d = camera_rays(c2w, FOVY_DEG, side, side)
        return render(
            self.colored,
            self.occupancy,
            rays_o,
            rays_d,
            self._render_config(),
            background=torch.full((3,), background, device=self.device),
        ).images

    def complaint(self, shown: Shown) -> str | None:
        return complaint_about(shown.opacity)

    def write_files(
        self, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]:
        from .write_mesh import write_mesh

        return write_mesh(self, config, folder, on_event)


def make_field(
    options: OptimizeConfig, seed: int, number: int = 0, latent_channels: int = 0
) -> RadianceField:
    """The field before its first step, of RGB or of that many latent channels."""
    grid = HashGridConfig(
        n_levels=options.field.n_levels,
        n_features=options.field.n_features,
        log2_table_size=options.field.log2_table_size,
        base_resolution=options.field.base_resolution,
        per_level_scale=options.field.per_level_scale,
    )
    return RadianceField(
        FieldConfig(
            hash_grid=grid,
            hidden_dim=options.field.hidden_dim,
            color_channels=latent_channels or 3,
            bounded_colors=latent_channels == 0,
        ),
        backend=options.encoding,
        generator=torch.Generator().manual_seed(step_seed(seed, -1 - number)),
        table_dtype=_TABLE_DTYPES[options.table_dtype],
    )


def resolution_at(options: OptimizeConfig, progress: float) -> int:
    """Side of the rendered views at this progress."""
    reached = sum(progress >= milestone for milestone in options.resolution_milestones)
    return options.resolutions[reached]


def regularization(
    options: OptimizeConfig,
    field: RadianceField,
    rendered: Rendered,
    generator: torch.Generator,
) -> Tensor:
    """The weighted sum of the regularisers in use."""
    surface = rendered.surface
    total = options.entropy_weight * opacity_entropy(rendered.opacity)
    if options.orientation_weight > 0 and surface.normals is not None:
        total = total + options.orientation_weight * orientation_loss(
            surface.weights, surface.normals, surface.directions, rendered.opacity.numel()
        )
    if options.normal_smoothness_weight > 0:
        total = total + options.normal_smoothness_weight * normal_smoothness(
            lambda points: field.normals(points, create_graph=True),
            surface.positions,
            surface.weights,
            distance=NEIGHBOUR_DISTANCE,
            generator=generator,
        )
    return total


def complaint_about(opacity: Tensor) -> str | None:
    """What is wrong with the views' opacity in plain words, None if nothing is.

    The marks: nothing covers 1 % of the views; a third of what is covered is half transparent;
    more is covered than an object can cover that the cameras frame. The field lives in a ball of
    radius 1, which covers 73 to 86 % of a view from the distances of a run; an object of radius
    0.9, the largest there should be, covers 58 to 69 %.
    """
    covered = float((opacity > 0.05).float().mean())
    if covered < 0.01:
        return "empty: nothing is left in the box; try another --seed or a lower guidance scale"
    half = float(((opacity > 0.15) & (opacity < 0.85)).float().mean())
    if half > covered / 3:
        return "fog: most of the object is half transparent; more --steps usually clear it"
    if covered > FILLED:
        return "fills its space: the object is cut off at its sides; try another --seed"
    return None
