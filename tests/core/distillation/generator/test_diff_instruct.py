"""Diff-Instruct's gradient against that of the integral KL, computed from densities alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.distillation.generator.diff_instruct import DiffInstruct
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground
from core.distillation.score.sds import (
    Weighting,
    dreamfusion_weighting,
    surrogate_loss,
    x0_weighting,
)
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import VPSchedule
from core.training import train

Quadrature = Callable[[int, int], tuple[Tensor, Tensor]]

SCHEDULE = VPSchedule(beta_max=8.0)


def integral_kl(
    generator: nn.Module, mixture: GaussianMixture, weighting: Weighting, nodes: tuple[Tensor, ...]
) -> Tensor:
    """int c(t) (sigma/alpha)^2 KL(q_t || p_t) dt, differentiable by the generator's parameters.

    q_t = N(alpha a, S), S = alpha^2 B B^T + sigma^2 I, has a known entropy; E log p_t is a
    quadrature over q_t itself. No score is involved.
    """
    times, lengths, u, weights = nodes
    shift, matrix = generator.get_parameter("shift"), generator.get_parameter("matrix")
    total = torch.zeros((), dtype=torch.float64)
    for t, length in zip(times, lengths, strict=True):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        eye = torch.eye(len(shift), dtype=torch.float64)
        root = torch.linalg.cholesky(alpha**2 * matrix @ matrix.T + sigma**2 * eye)
        x_t = alpha * shift + u @ root.T
        log_p = mixture.noised(alpha.expand(len(u)), sigma.expand(len(u))).log_density(x_t)
        # Up to a constant, minus the entropy.
        kl = -root.diagonal().log().sum() - weights @ log_p
        total = total + length * weighting(SCHEDULE, t) * (sigma / alpha) ** 2 * kl
    return total


@pytest.mark.parametrize("weighting", [x0_weighting, dreamfusion_weighting])
@pytest.mark.parametrize("dimension", [1, 2])
def test_the_gradient_is_that_of_the_integral_kl(
    dimension: int, weighting: Weighting, gauss_hermite: Quadrature, request: pytest.FixtureRequest
) -> None:
    """One latent number to one or two data numbers; the fake score is the generator's own."""
    mixture = request.getfixturevalue(f"mixture_{dimension}d")
    student = request.getfixturevalue("line_generator" if dimension == 1 else "plane_generator")
    method = DiffInstruct(
        mixture_ground(mixture, SCHEDULE), weighting=weighting, latent_dimension=1, steps=1
    )
    method.student = student
    method.fake = MixtureDenoiser(student.law(), SCHEDULE)
    roots, lengths = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(4))
    times, lengths = 0.65 + 0.25 * roots, 0.25 * lengths

    u, weights = gauss_hermite(dimension, 160 if dimension == 1 else 60)
    parameters = list(student.parameters())
    expected = torch.autograd.grad(
        integral_kl(student, mixture, weighting, (times, lengths, u, weights)), parameters
    )

    draws, weights = gauss_hermite(dimension + 1, 140 if dimension == 1 else 40)
    z, eps = draws[:, :1], draws[:, 1:]
    computed = [torch.zeros_like(parameter) for parameter in parameters]
    for t, length in zip(times, lengths, strict=True):
        x = method.generate(z)
        gradient = method.gradient_at(x, t.expand(len(z)), eps)
        loss = length * surrogate_loss(x, weights[:, None] * gradient)
        for total, part in zip(computed, torch.autograd.grad(loss, parameters), strict=True):
            total += part

    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-8)
        assert bool((other.abs() > 1e-3).all())


def test_both_modes_keep_their_weights(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    """With a latent in the plane, for data on a line."""
    torch.manual_seed(0)
    method = DiffInstruct(
        ground, latent_dimension=2, learning_rate=1e-3, fake_learning_rate=2e-3, steps=800
    )
    train(method)
    with torch.no_grad():
        x = method.generate(method.noise(4000, torch.Generator().manual_seed(5)))
    # Untrained, and with SDS, the left mode has nothing and the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.1
    assert wasserstein(x) < 0.25
