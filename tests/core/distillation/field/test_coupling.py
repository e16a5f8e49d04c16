"""The learned coupling: its two terms in closed form, and what beta trades."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.coupling import CurvatureCoupling
from core.distillation.field.reflow import straightness
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.mixture import GaussianMixture
from core.training import train


def test_the_divergence_is_that_of_normals(generator: torch.Generator) -> None:
    method = CurvatureCoupling(mixture_ground(two_mode_mixture()), steps=1)
    mean, log_std = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, log_std.exp()), normal(torch.zeros_like(mean), torch.ones_like(mean))
    ).sum(1)
    torch.testing.assert_close(method.divergence(mean, log_std), expected)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.5, 0.5)])
def test_both_terms_on_a_gaussian(a: float, b: float) -> None:
    """z = a x + b e and the best velocity c(t) x_t, in closed form."""
    std = 0.5
    gaussian = GaussianMixture(
        weights=torch.ones(1), means=torch.zeros(1, 1), covariances=torch.full((1, 1), std**2)
    )
    method = CurvatureCoupling(mixture_ground(gaussian), steps=1, batch=400_000)

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_e = t * a + 1 - t, t * b
        covariance = (a - 1) * std**2 * of_x + b * of_e
        return covariance, (std * of_x).square() + of_e.square()

    class Function(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(
            self,
            x: Tensor,
            t: Tensor | None = None,
            s: Tensor | None = None,
            cond: Conditioning | None = None,
        ) -> Tensor:
            if self.kind == "mean":
                return a * x
            if self.kind == "log_std":
                return torch.full_like(x, math.log(b))
            assert t is not None
            covariance, variance = moments(t[:, None])
            return covariance / variance * x

    method.student, method.mean, method.log_std = (
        Function(kind) for kind in ("student", "mean", "log_std")
    )
    nodes, weights = np.polynomial.legendre.leggauss(40)
    covariance, variance = moments(torch.from_numpy((nodes + 1) / 2))
    left = (a - 1) ** 2 * std**2 + b**2 - covariance.square() / variance
    flow, divergence = method.terms(torch.Generator().manual_seed(0))
    assert flow.item() == pytest.approx((torch.from_numpy(weights / 2) @ left).item(), rel=0.01)
    expected = (a**2 * std**2 + b**2 - 1) / 2 - math.log(b)
    assert divergence.item() == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_a_small_beta_straightens_and_costs_divergence() -> None:
    ground = mixture_ground(two_mode_mixture(), width=64)
    curvature, divergence = {}, {}
    for beta in (10.0, 0.2):
        torch.manual_seed(0)
        method = CurvatureCoupling(ground, beta=beta, steps=500)
        train(method)
        generator = torch.Generator().manual_seed(1)
        z = method.noise(2000, generator)
        with torch.no_grad():
            states = method.sample(z, 16, None, generator)
            divergence[beta] = method.terms(generator)[1].item()
        curvature[beta] = straightness(torch.linspace(1, 0, 17), states).item()
    assert curvature[0.2] < 0.6 * curvature[10.0]
    assert divergence[0.2] > divergence[10.0] + 0.1


def test_beta_must_be_positive() -> None:
    with pytest.raises(ValueError, match="beta must be positive"):
        CurvatureCoupling(mixture_ground(two_mode_mixture()), beta=0.0, steps=1)
