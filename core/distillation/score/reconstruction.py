"""MVDream's x0 reconstruction: the image against what the teacher makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Guidance
from core.distillation.score.sds import SDS
from core.guidance import GuidanceRescale

__all__ = ["Reconstruction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """The gradient of 1/2 |x - sg(x0^)|^2 (MVDream, arXiv 2308.16512, Section 3.2).

    x0^ is the guided x0 with its standard deviation, over all of an object's `views` together,
    brought back toward the conditional one's by `rescale`, against the over-saturation that a
    scale of 50 brings. The gradient is x - x0^ itself: SDS with x0_weighting, of a rescaled
    guidance.
    """

    guided_only: ClassVar[bool] = False

    guidance: Guidance
    rescale: float = 0.5
    views: int = 1

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        return self._sds().gradient(x, t, cond, generator)

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for a given noise eps [B, ...]."""
        return self._sds().gradient_at(x, t, eps, cond)

    def _sds(self) -> SDS:
        rescaled = GuidanceRescale(guidance=self.guidance, rescale=self.rescale, views=self.views)
        return SDS(rescaled)
