"""A field whose colours are a teacher's latents (Latent-NeRF, arXiv 2211.07600).

Rendered latents are what the teacher denoises: no autoencoder stands in a step, forward or
backward. For the mesh, the pictures and a last stage of refinement the latents are read as RGB by
a linear layer, which begins as the family's known approximation of its decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.teachers.teacher import LatentTeacher
from nerf.background import random_background
from nerf.field import RadianceField

from .errors import ConfigError
from .field_representation import FieldRepresentation
from .optimize_config import OptimizeConfig
from .representation import ParameterGroup, Shown
from .views import Views

__all__ = ["LatentFieldRepresentation", "RgbField", "latent_reading"]


class LatentFieldRepresentation(FieldRepresentation):
    """A field of latents, with the layer that reads them as RGB.

    Over the last `rgb_refinement` of a run it shows itself in RGB, and the layer learns too
    (Section 3.2, "RGB Refinement"). Without that share the layer stays as it is.

    Args:
        reading: [C, 3], what each channel adds to R, G and B in [-1, 1].
    """

    def __init__(
        self, options: OptimizeConfig, seed: int, number: int, device: str, reading: Tensor
    ) -> None:
        super().__init__(options, seed, number, device, latent_channels=len(reading))
        self.reading = nn.Parameter(
            reading.to(self.device, copy=True), requires_grad=options.rgb_refinement > 0
        )
        # Plain backgrounds are the smallest latents that are read as their colours.
        self.register_buffer("of_rgb", torch.linalg.pinv(reading).to(self.device))

    of_rgb: Tensor

    @property
    def colored(self) -> RgbField:
        return RgbField(self.field, self.reading)

    def groups(self) -> Sequence[ParameterGroup]:
        """The hash grid, the MLP, and the reading where it is refined."""
        groups = super().groups()
        if not self.reading.requires_grad:
            return groups
        rate = self.options.mlp_learning_rate
        return (*groups, ParameterGroup(parameters=[self.reading], learning_rate=rate))

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        colors = random_background(len(views.azimuth_deg), generator, device=self.device)
        share = self.options.rgb_refinement
        if share > 0 and progress >= 1 - share:
            return self.shown(self.colored, colors, views, progress, generator)
        latents = (2.0 * colors - 1.0) @ self.of_rgb
        return self.shown(self.field, latents, views, progress, generator, latent=True)

    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        return super().pictures(views, side, background).clamp(0, 1)


class RgbField:
    """A field of latents as one of RGB: albedo (1 + z @ reading) / 2, about [0, 1]."""

    def __init__(self, field: RadianceField, reading: Tensor) -> None:
        self._field = field
        self._reading = reading

    @property
    def aabb(self) -> tuple[float, float, float, float, float, float]:
        return self._field.aabb

    def density(self, points: Tensor) -> Tensor:
        return self._field.density(points)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        density, latents = self._field(points)
        return density, self._rgb(latents)

    def with_normals(
        self, points: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        density, latents, normals = self._field.with_normals(points, create_graph=create_graph)
        return density, self._rgb(latents), normals

    def _rgb(self, latents: Tensor) -> Tensor:
        return 0.5 * (1.0 + latents @ self._reading)


def latent_reading(options: OptimizeConfig, teacher: object) -> Tensor | None:
    """The reading [C, 3] of the teacher's latents for `--latent`, None without that.

    Raises ConfigError where the teacher judges pixels, or how to read its latents is not known.
    """
    if not options.latent:
        return None
    if not isinstance(teacher, LatentTeacher):
        raise ConfigError(
            "--latent is True: this teacher judges pixels and has no latents; leave it out"
        )
    known = getattr(teacher, "latents_to_rgb", None)
    if known is None:
        raise ConfigError(
            "--latent is True: how this teacher's latents are read as RGB is not known here, as it "
            "is for Stable Diffusion 1 and 2 and MVDream; leave it out"
        )
    return torch.tensor(known)
