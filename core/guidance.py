"""Wrappers around guidance: its standard deviation brought back, its other half alone, one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from core.denoiser import (
    ClassifierFreeGuidance,
    Conditioning,
    Denoiser,
    Guidance,
    GuidedPrediction,
)
from core.prediction import Prediction
from core.schedule import NoiseSchedule

__all__ = ["EmbeddedGuidance", "EmbedsGuidance", "GuidanceRescale", "Unconditional", "guided"]


@runtime_checkable
class EmbedsGuidance(Denoiser, Protocol):
    """A denoiser distilled from classifier-free guidance: it reads cond.guidance_scale.

    What it contrasts with is part of it, so it takes no cond.uncond. (A model whose embedded scale
    leaves room for classifier-free guidance around it, as FLUX.1-dev's does, is not one.)
    """

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """The least and the largest scale that it was distilled for."""
        ...


@dataclass(frozen=True, eq=False)
class EmbeddedGuidance:
    """ClassifierFreeGuidance's answer in one pass of a denoiser that was distilled to give it.

    Raises ValueError for a scale that it was not distilled for.
    """

    denoiser: EmbedsGuidance
    guidance_scale: float

    def __post_init__(self) -> None:
        low, high = self.denoiser.guidance_scales
        if not low <= self.guidance_scale <= high:
            raise ValueError(
                f"This denoiser was distilled for guidance scales of {low:g} to {high:g}, not for "
                f"{self.guidance_scale:g}."
            )

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        scale = torch.full((len(x_t),), self.guidance_scale, device=x_t.device)
        if cond is None:
            return self.denoiser(x_t, t, Conditioning(guidance_scale=scale))
        cond = replace(cond, uncond=None).expand(len(x_t))
        return self.denoiser(x_t, t, replace(cond, guidance_scale=scale))


def guided(denoiser: Denoiser, guidance_scale: float) -> Denoiser:
    """`denoiser` under classifier-free guidance: one pass where it embeds it, else two."""
    if isinstance(denoiser, EmbedsGuidance):
        return EmbeddedGuidance(denoiser, guidance_scale)
    return ClassifierFreeGuidance(denoiser, guidance_scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class GuidanceRescale:
    """Guidance whose output keeps the spread of the conditional one (arXiv 2305.08891, Sec. 3.4).

    With std over all of a sample's elements:

        x0 = phi (std(x0_cond) / std(x0_guided)) x0_guided + (1 - phi) x0_guided,  phi = `rescale`.

    The paper rescales the network's own output, eps or v; MVDream (arXiv 2308.16512) rescales x0,
    which is what matters to score distillation. A Guidance itself: 0 leaves `guidance` as it is.

    `views` consecutive samples share one factor, so that the views of one object keep their
    relative contrast; the batch must be a multiple of it.
    """

    guidance: Guidance
    rescale: float
    views: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {self.rescale}.")
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}.")

    @property
    def schedule(self) -> NoiseSchedule:
        return self.guidance.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return self.parts(x_t, t, cond).guided

    def parts(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> GuidedPrediction:
        parts = self.guidance.parts(x_t, t, cond)
        if self.rescale == 0:
            return parts
        guided = parts.guided.x0
        wanted = self._std(parts.conditional.x0)
        found = self._std(guided)
        # A constant output has no spread to bring back.
        factor = torch.where(found > 0, wanted / found.where(found > 0, 1.0), 1.0)
        factor = self.rescale * factor + (1 - self.rescale)
        x0 = factor.reshape(-1, *[1] * (x_t.ndim - 1)) * guided
        prediction = Prediction.from_x0(x0, x_t, t, self.schedule)
        return replace(parts, guided=prediction)

    def _std(self, values: Tensor) -> Tensor:
        """[B], the same for all samples of a group."""
        if len(values) % self.views != 0:
            raise ValueError(
                f"A batch of {len(values)} is no multiple of {self.views} views: give each object "
                "all of its views."
            )
        groups = values.reshape(len(values) // self.views, -1)
        return groups.std(1).repeat_interleave(self.views)


@dataclass(frozen=True, eq=False)
class Unconditional:
    """The prediction for cond.uncond alone: guidance at scale 0 for the price of one pass.

    Without a conditioning it is the denoiser itself.
    """

    denoiser: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        if cond is None:
            return self.denoiser(x_t, t)
        if cond.uncond is None:
            raise ValueError(
                "Unconditional needs cond.uncond, the conditioning of the empty or negative prompt."
            )
        return self.denoiser(x_t, t, cond.uncond.expand(len(x_t)))
