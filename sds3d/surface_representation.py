"""The mesh of a field as what a second stage optimises (Magic3D, arXiv 2211.10440, Section 4.2).

The surface is the zero level of a grid of tetrahedra that begins as the field's own iso-surface;
its colours are the field's, taken at the points where a pixel meets it, and both are trained by
what a teacher says of large pictures. Pictures are lit by a lamp beside the camera, half hidden in
ambient light of a random share, so that they show the shape as well as the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nerf import mesh as meshes
from nerf.background import random_background
from nerf.cameras import orbit_c2w
from nerf.shading import lambertian
from nerf.transfer import to_device

from .config import GenerateConfig
from .errors import EmptyField
from .events import Listener
from .field_representation import FieldRepresentation
from .optimize_config import OptimizeConfig
from .representation import ParameterGroup, Shown
from .views import FOVY_DEG, Views, ring, sample_views

__all__ = ["SurfaceRepresentation"]

LEAST_AMBIENT = 0.1
"""The ambient share of the light is uniform between this and 1."""

LAMP_SHIFT = 1.0
"""Standard deviation, in world units, of the lamp's place about the camera's."""


class SurfaceRepresentation(nn.Module):
    """A surface and its colours; made from a field that was optimised.

    Raises EmptyField where the field has no surface.
    """

    def __init__(self, coarse: FieldRepresentation, config: GenerateConfig) -> None:
        super().__init__()
        from .write_mesh import opacity_views

        self.options: OptimizeConfig = config.optimize
        self.device = coarse.device
        resolution = config.optimize.refine.tetrahedra_resolution
        grid = meshes.sample_density(coarse.field.density, resolution, device=self.device)
        try:
            threshold = meshes.choose_iso_threshold(grid, opacity_views(coarse, config)).density
            values = meshes.signed_values(grid, threshold)
        except meshes.EmptySurfaceError as error:
            raise EmptyField(
                f"the field has no surface to refine ({error}): try another --seed or more --steps"
            ) from error
        self.surface = meshes.DeformableSurface(values).to(self.device)
        self.field = coarse.field

    @property
    def finest_side(self) -> int:
        return self.options.refine.refine_resolution

    def groups(self) -> Sequence[ParameterGroup]:
        """The surface, the hash grid of its colours, and their MLP."""
        refine, field = self.options.refine, self.field
        rest = [*field.hidden.parameters(), *field.head.parameters()]
        rate = refine.texture_learning_rate
        return (
            ParameterGroup(
                parameters=list(self.surface.parameters()),
                learning_rate=refine.surface_learning_rate,
            ),
            ParameterGroup(parameters=list(field.encoding.parameters()), learning_rate=rate),
            ParameterGroup(parameters=rest, learning_rate=rate / 10),
        )

    def prepare(self, turn: int, generator: torch.Generator) -> None:
        """Nothing: the mesh is made anew in each picture."""

    def views(self, generator: torch.Generator) -> Views:
        options = self.options
        return sample_views(
            options.refine.refine_views_per_step, options.elevation_range_deg, generator
        )

    def around(self, count: int, elevation_deg: float) -> Views:
        return ring(count, elevation_deg)

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        """One field of view and one share of ambient light for the step, a lamp for each view."""
        refine, count = self.options.refine, len(views.azimuth_deg)
        background = random_background(count, generator, device=self.device)
        low, high = refine.refine_fovy_range_deg
        zoom, light = torch.rand(2, generator=generator).tolist()
        ambient = LEAST_AMBIENT + (1 - LEAST_AMBIENT) * light
        shift = LAMP_SHIFT * torch.randn(count, 3, generator=generator)
        vertices, faces = self.surface.mesh()
        c2w = self._cameras(views)
        lamps = c2w[:, :3, 3] + to_device(shift, self.device)

        def shader(points: Tensor, normals: Tensor, view: Tensor) -> Tensor:
            albedo = self.field(points)[1]
            return lambertian(
                albedo, normals, points, lamps[view], ambient=ambient, diffuse=1 - ambient
            )

        shown = meshes.render_surface(
            vertices,
            faces,
            shader,
            c2w,
            low + (high - low) * zoom,
            refine.refine_resolution,
            background=background[:, None, None],
        )
        return Shown(
            images=shown.images,
            opacity=shown.coverage.detach(),
            samples=shown.pixels,
            penalty=lambda _: refine.roughness_weight * meshes.surface_roughness(vertices, faces),
        )

    @torch.no_grad()
    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        """The bare colours, as an exported texture has them."""
        vertices, faces = self.surface.mesh()
        return meshes.render_surface(
            vertices,
            faces,
            lambda points, _normals, _view: self.field(points)[1],
            self._cameras(views),
            FOVY_DEG,
            side,
            background=torch.full((3,), background, device=self.device),
        ).images

    def complaint(self, shown: Shown) -> str | None:
        covered = float((shown.opacity > 0.05).float().mean())
        if covered < 0.01:
            return "empty: the surface has vanished; try a lower --surface-learning-rate"
        if covered > 0.98:
            return "fills the view: the object is larger than what the cameras see"
        return None

    @torch.no_grad()
    def write_files(
        self, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]:
        """As a field's; "iso_iou" is what decimation left of the silhouettes, and there is no
        density to name."""
        from .write_mesh import ISO_SIDE, iso_cameras, write_extracted

        vertices, faces = (part.cpu().numpy() for part in self.surface.mesh())
        faces = faces.astype(np.int32)
        c2w = iso_cameras(config.device).cpu().numpy()
        covered = meshes.mesh_silhouettes(vertices, faces, c2w, FOVY_DEG, ISO_SIDE, ISO_SIDE)
        views = meshes.FieldViews(opacity=covered.astype(np.float32), c2w=c2w, fovy_deg=FOVY_DEG)

        def extract(settings: meshes.MeshConfig) -> meshes.ExtractedMesh:
            return meshes.color_mesh(
                vertices,
                faces,
                lambda points, _normals: self.field(points)[1],
                settings,
                views=views,
                device=self.device,
            )

        return write_extracted(extract, config, folder, on_event)

    def _cameras(self, views: Views) -> Tensor:
        return orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance, device=self.device)
