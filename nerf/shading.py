"""Colours of surface points under one point light: what an object's shape looks like.

Shown as plain albedo, a flat picture of a shape passes for the shape. Shaded views, some of them
without any colour, take that way out (DreamFusion, arXiv 2209.14988, section 3.1). A shader is
given to `nerf.rendering.render`; without one the albedo is shown as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Lambertian", "lambertian"]


def lambertian(
    albedo: Tensor,
    normals: Tensor,
    positions: Tensor,
    light_position: Tensor,
    *,
    ambient: float,
    diffuse: float,
) -> Tensor:
    """Diffuse reflection, [S, 3] (arXiv 2209.14988, section 3.1):

        albedo * (diffuse * max(0, n . (l - x) / |l - x|) + ambient)

    albedo, normals (unit, outward), positions: [S, 3]; light_position: [3] or [S, 3], in the
    world. Results stay in [0, 1] where ambient + diffuse is at most 1.
    """
    to_light = functional.normalize(light_position - positions, dim=-1)
    facing = (normals * to_light).sum(dim=-1, keepdim=True).clamp(min=0)
    return albedo * (ambient + diffuse * facing)


@dataclass(frozen=True, kw_only=True)
class Lambertian:
    """A shader with one point light per view.

    light_position: [V, 3] in the world. ambient, diffuse: light from everywhere and from the
    lamp, adding up to at most 1. textureless: show white matter in place of the albedo, which
    leaves the shape alone to be judged.
    """

    light_position: Tensor
    ambient: float = 0.4
    diffuse: float = 0.6
    textureless: bool = False

    def __post_init__(self) -> None:
        if self.light_position.ndim != 2 or self.light_position.shape[1] != 3:
            shape = list(self.light_position.shape)
            raise ValueError(f"light_position must be [V, 3], one light per view, got {shape}")
        if self.ambient < 0 or self.diffuse < 0 or self.ambient + self.diffuse > 1 + 1e-6:
            raise ValueError(
                "ambient and diffuse must not be negative, nor exceed 1 together, got "
                f"{self.ambient} and {self.diffuse}"
            )

    def __call__(
        self, albedo: Tensor, normals: Tensor, positions: Tensor, view_indices: Tensor
    ) -> Tensor:
        """Colours [S, 3] of samples of views view_indices [S]."""
        return lambertian(
            torch.ones_like(albedo) if self.textureless else albedo,
            normals,
            positions,
            self.light_position.to(positions).index_select(0, view_indices),
            ambient=self.ambient,
            diffuse=self.diffuse,
        )
