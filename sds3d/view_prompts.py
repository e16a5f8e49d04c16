"""Prompts that say from where one looks, for teachers that are not told the camera.

The names and their regions are the field's: front and back within 45 degrees of the axis, overhead
above 60 degrees, side between (DreamFusion, arXiv 2209.14988, Section 3.2). Prompts are encoded
once; a view's conditioning is a weighted mean of the four embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.transfer import to_device

from .views import Views

VIEW_NAMES = ("front", "side", "back", "overhead")

FRONT_DEG = 45.0
"""Half the width of the front's and of the back's region in azimuth."""

OVERHEAD_DEG = 60.0
"""Elevation above which a view is overhead."""

OVERHEAD_BLEND_DEG = 15.0
"""Half the range of elevations in which interpolated prompts turn to overhead."""


def view_texts(prompt: str) -> list[str]:
    """The prompt for each of VIEW_NAMES."""
    return [f"{prompt}, {name} view" for name in VIEW_NAMES]


def view_weights(views: Views, *, interpolated: bool) -> Tensor:
    """What each of VIEW_NAMES counts in each view: [V, 4], rows of sum 1.

    Discrete weights are 0 or 1. Interpolated ones are linear in the azimuth between front (0),
    side (90) and back (180 degrees), and in the elevation around OVERHEAD_DEG.
    """
    away = away_from_front_deg(views)
    if interpolated:
        front, back = (1 - away / 90).clamp(min=0), (away / 90 - 1).clamp(min=0)
        rising = (views.elevation_deg - OVERHEAD_DEG) / (2 * OVERHEAD_BLEND_DEG) + 0.5
        overhead = rising.clamp(0, 1)
    else:
        front, back = (away < FRONT_DEG).float(), (away > 180 - FRONT_DEG).float()
        overhead = (views.elevation_deg > OVERHEAD_DEG).float()
    around = torch.stack([front, 1 - front - back, back], dim=1)
    return torch.cat([(1 - overhead)[:, None] * around, overhead[:, None]], dim=1)


def away_from_front_deg(views: Views) -> Tensor:
    """The angle between the view's azimuth and the front's [V], in 0 to 180 degrees."""
    return ((views.azimuth_deg + 180) % 360 - 180).abs()


def perp_neg_weights(views: Views, *, interpolated: bool) -> Tensor:
    """How strongly "front view" and "side view" are avoided in each view: [2, V].

    Perp-Neg's decays over the share r of the nearer-to-front prompt (arXiv 2304.04968, Section
    4.2, with the constants of its authors, exact where they give three digits):

        front to side:  front 4 (e^(-r/2) - e^(-1/2)),      side 4 (e^(-(1-r)/2) - e^(-1/2)),
        side to back:   front e^(-r/2) + 4 - 5 e^(-1/2),    side e^(-r/2) - e^(-1/2).

    So a view's own prompt is not avoided, the front is avoided the more the farther one is from
    it, and both are continuous at 90 degrees. Overhead nothing is avoided.
    """
    away, end = away_from_front_deg(views), math.exp(-0.5)
    of_front_side = (1 - away / 90).clamp(0, 1)
    of_side_back = (2 - away / 90).clamp(0, 1)
    before = away < 90
    decay = torch.exp(-of_side_back / 2)
    front = torch.where(before, 4 * (torch.exp(-of_front_side / 2) - end), decay + 4 - 5 * end)
    side = torch.where(before, 4 * (torch.exp(-(1 - of_front_side) / 2) - end), decay - end)
    around = 1 - view_weights(views, interpolated=interpolated)[:, 3]
    return around * torch.stack([front, side])


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewPrompts:
    """One prompt's conditionings for every view.

    Attributes:
        texts: What the teacher encoded `view_texts` to, four samples with their `uncond`.
        interpolated: Whether embeddings are mixed or the nearest is taken.
    """

    texts: Conditioning
    interpolated: bool

    def __post_init__(self) -> None:
        if self.texts.text is None or self.texts.batch_size != len(VIEW_NAMES):
            raise ValueError(
                f"View prompts need text embeddings of {len(VIEW_NAMES)} prompts, one for each of "
                f"{', '.join(VIEW_NAMES)}."
            )

    def at(self, views: Views) -> Conditioning:
        """The conditioning of each view, without a camera: B = V samples."""
        text, mask = self.texts.text, self.texts.text_mask
        assert text is not None
        weights = view_weights(views, interpolated=self.interpolated)
        weights = to_device(weights, text.device)
        if mask is not None:
            mask = ((weights[:, :, None] > 0) & mask[None]).any(dim=1)
        mixed = torch.einsum("vk,kld->vld", weights.to(text.dtype), text)
        pooled = self.texts.pooled_text
        if pooled is not None:
            pooled = weights.to(pooled.dtype) @ pooled
        # Everything but the prompt's text is the same in all four.
        common = self.texts.select([0]).expand(len(weights))
        return replace(common, text=mixed, text_mask=mask, pooled_text=pooled)

    def negatives(self, views: Views) -> tuple[Sequence[Conditioning], Tensor]:
        """Perp-Neg's negative prompts (front, side), B = V samples each, and weights [2, V]."""
        count = len(views.azimuth_deg)
        conds = [self.texts.select([index]).expand(count) for index in (0, 1)]
        weights = perp_neg_weights(views, interpolated=self.interpolated)
        device = None if self.texts.text is None else self.texts.text.device
        return conds, weights if device is None else to_device(weights, device)

    @property
    def are_one(self) -> bool:
        """Whether the teacher reads the same in all four, so that they change nothing."""
        text = self.texts.text
        return text is not None and bool((text == text[:1]).all())
