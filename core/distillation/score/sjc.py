"""Score Jacobian Chaining: the denoiser's pull, averaged over perturbations of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["SJC"]


@dataclass(frozen=True, eq=False)
class SJC:
    """Perturb-and-average scoring (arXiv 2212.00774).

    The image is no noisy image, so its score is asked at perturbed copies of it: with
    n = sigma/alpha the noise level relative to the image,

        PAAS(x) = E_eps[(D(x + n eps) - x) / n^2] = E_eps[score of p_n at x + n eps].

    gradient = w(t) (x - mean_k D(x_t,k)), that is -w n^2 PAAS, over `samples` perturbations: SDS
    for one of them, with 1/samples of its variance for several, at the price of as many passes.
    The paper's own gradient, -n PAAS, is eps_weighting's. It is the authors' var_red = True: with
    the perturbed image for x in the residual the expectation is the same, and the variance more.
    """

    guided_only: ClassVar[bool] = True

    denoiser: Denoiser
    samples: int = 1
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"SJC needs at least one sample, got {self.samples}.")

    @torch.no_grad()
    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        total = torch.zeros_like(x)
        # One pass after the other: the memory of a step does not grow with the samples.
        for _ in range(self.samples):
            total = total + self.gradient_at(x, t, noise_like(x, generator), cond)
        return total / self.samples

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for one given perturbation eps [B, ...]."""
        schedule = self.denoiser.schedule
        x_t = diffuse(schedule, x, eps, t)
        residual = x - self.denoiser(x_t, t, cond).x0
        return per_sample(self.weighting(schedule, t), x) * residual
