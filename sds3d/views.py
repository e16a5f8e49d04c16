"""Cameras of a run: where the teacher looks from in each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FOVY_DEG = 40.0
"""Vertical field of view of every camera, as in the world the embedded teacher knows."""

DISTANCE = 2.9
"""Distance from the origin at which an object of radius 0.9 fills the image."""

DISTANCE_JITTER = 0.12
"""Half the range by which a training camera's distance varies."""


@dataclass(frozen=True)
class Views:
    """V cameras on orbits about the origin; each field is a float tensor [V].

    Attributes:
        azimuth_deg: 0 in front (+Z), growing toward +X.
        elevation_deg: Positive above.
        distance: From the origin.
    """

    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor

    @property
    def camera(self) -> Tensor:
        """[V, 2]: azimuth and elevation in degrees, as camera-conditioned teachers take them."""
        return torch.stack([self.azimuth_deg, self.elevation_deg], dim=1)


def sample_views(
    count: int, elevation_range_deg: tuple[float, float], generator: torch.Generator
) -> Views:
    """`count` random cameras: azimuths stratified over the circle, elevations uniform in area.

    One common random turn and a jitter within each stratum make every azimuth equally likely,
    while two views of one step never look from the same side.
    """
    turn, stratum = torch.rand((), generator=generator), torch.rand(count, generator=generator)
    azimuth = (turn + (torch.arange(count) + 0.5 * stratum) / count) * 360.0 % 360.0
    low, high = (math.sin(math.radians(e)) for e in elevation_range_deg)
    height = low + (high - low) * torch.rand(count, generator=generator)
    jitter = 2.0 * torch.rand(count, generator=generator) - 1.0
    return Views(
        azimuth_deg=azimuth,
        elevation_deg=torch.rad2deg(torch.asin(height)),
        distance=DISTANCE + DISTANCE_JITTER * jitter,
    )


def ring(count: int, elevation_deg: float) -> Views:
    """`count` cameras evenly around, the first in front."""
    azimuth = torch.arange(count) * (360.0 / count)
    return Views(
        azimuth_deg=azimuth,
        elevation_deg=torch.full_like(azimuth, elevation_deg),
        distance=torch.full_like(azimuth, DISTANCE),
    )


def in_rings(views: Views, per_object: int) -> Views:
    """The same number of cameras in rings of `per_object`, for teachers that judge them together.

    The cameras of a ring stand evenly around at one elevation and distance, those of the first of
    the `per_object` consecutive cameras that it replaces. It begins at that one's azimuth divided
    by `per_object`: as evenly spread over its part of the circle as that was over the whole, so
    that every azimuth stays equally likely. Rings of one camera are the cameras themselves.
    """
    count = len(views.azimuth_deg)
    if count % per_object:
        raise ValueError(f"{count} cameras are no whole number of rings of {per_object}")
    if per_object == 1:
        return views
    first = torch.arange(0, count, per_object).repeat_interleave(per_object)
    place = torch.arange(count) % per_object
    azimuth = (views.azimuth_deg[first] / per_object + place * (360.0 / per_object)) % 360.0
    return Views(
        azimuth_deg=azimuth,
        elevation_deg=views.elevation_deg[first],
        distance=views.distance[first],
    )
