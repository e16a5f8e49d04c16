"""DMD's gradient: its value, its zero, and the loss that carries it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.distillation.generator.dmd import DMD
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, diffuse, noise_like
from core.training import train


def respelled(mixture: GaussianMixture) -> GaussianMixture:
    """The same law with its components in reverse, each in two halves."""
    return GaussianMixture(
        weights=mixture.weights.flip(0).repeat(2) / 2,
        means=mixture.means.flip(0).repeat(2, 1),
        covariances=mixture.covariances.flip(0).repeat(2, 1, 1),
    )


def draws(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, eps = (torch.randn(40, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, torch.linspace(0.05, 1.0, 40, dtype=torch.float64), eps


def test_the_gradient_vanishes_where_the_laws_are_equal(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    method = DMD(mixture_ground(mixture_2d), steps=1)
    x, t, eps = draws(generator)
    method.fake = MixtureDenoiser(respelled(mixture_2d), FlowSchedule())
    assert float(method.gradient_at(x, t, eps).abs().max()) < 1e-12
    shifted = GaussianMixture(
        weights=mixture_2d.weights, means=mixture_2d.means + 0.1, covariances=mixture_2d.covariances
    )
    method.fake = MixtureDenoiser(shifted, FlowSchedule())
    assert float(method.gradient_at(x, t, eps).abs().min(1).values.max()) > 0.01


def test_the_gradient_is_in_units_of_the_teachers_error(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    method = DMD(mixture_ground(mixture_2d), normaliser_floor=0.1, steps=1)
    wide = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.zeros(1, 2, dtype=torch.float64),
        covariances=torch.ones(1, 2, dtype=torch.float64),
    )
    method.fake = MixtureDenoiser(wide, FlowSchedule())
    x, t, eps = draws(generator)
    real = method.ground.teacher(diffuse(FlowSchedule(), x, eps, t), t).x0
    fake = method.fake(diffuse(FlowSchedule(), x, eps, t), t).x0
    error = ((x - real).abs()[:, 0] + (x - real).abs()[:, 1]) / 2
    floor = 0.1 * method.ground.data_std
    above = error > floor
    assert bool(above.any())
    assert bool((~above).any())
    gradient = method.gradient_at(x, t, eps)
    torch.testing.assert_close(gradient[above], ((fake - real) / error[:, None])[above])
    torch.testing.assert_close(gradient[~above], ((fake - real) / floor)[~above])


def test_the_losss_gradient_is_g(mixture_2d: GaussianMixture, plane_generator: nn.Module) -> None:
    """To the parameters of a linear generator: the means of g and of g z^T."""
    torch.set_default_dtype(torch.float64)
    try:
        method = DMD(
            mixture_ground(mixture_2d), regression_weight=0, latent_dimension=1, batch=32, steps=1
        )
        method.student = plane_generator
        parameters = list(plane_generator.parameters())
        loss = method.loss(torch.Generator().manual_seed(3))
        shift, matrix = torch.autograd.grad(loss, parameters)
        # The same random numbers, in the order in which the loss draws them.
        generator = torch.Generator().manual_seed(3)
        method.ground.data(32, generator)
        z = method.noise(32, generator)
        t = method.ground.times(32, generator)
        x = method.generate(z).detach()
        g = method.gradient_at(x, t, noise_like(x, generator))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(shift, g.mean(0))
    torch.testing.assert_close(matrix, g.T @ z / 32)
    assert float(shift.abs().min()) > 1e-3


def test_regression_asks_for_the_teachers_own_sample(ground: Ground) -> None:
    """At the exact flow only DDIM's error is left; at a student of noise, the noise is."""
    method = DMD(ground, regression_batch=200, solver_steps=64, steps=1)

    class Exact(nn.Module):
        def forward(self, z: Tensor, cond: None = None) -> Tensor:
            ones = torch.ones(len(z))
            return ExactFlowMap(_mixture(ground), ground.schedule)(z, ones, ground.t_min * ones)

    method.student = Exact()
    assert method.regression_loss(torch.Generator().manual_seed(1)).item() < 0.01
    method.student = nn.Identity()
    method.generate = lambda z, cond=None: z
    assert method.regression_loss(torch.Generator().manual_seed(1)).item() > 0.1


def _mixture(ground: Ground) -> GaussianMixture:
    assert isinstance(ground.teacher, MixtureDenoiser)
    return ground.teacher.mixture


def test_settings_that_cannot_work_are_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="latent_dimension=None"):
        DMD(ground, latent_dimension=3, steps=1)
    with pytest.raises(ValueError, match="regression_weight"):
        DMD(ground, regression_weight=-1.0, steps=1)
    with pytest.raises(ValueError, match="solver_steps"):
        DMD(ground, solver_steps=0, steps=1)
    with pytest.raises(ValueError, match="normaliser_floor"):
        DMD(ground, normaliser_floor=0.0, steps=1)


def test_both_modes_keep_their_weights(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = DMD(ground, regression_batch=32, solver_steps=6, steps=600)
    train(method)
    with torch.no_grad():
        x = method.generate(method.noise(4000, torch.Generator().manual_seed(5)))
    # Untrained, and with SDS, the left mode has nothing and the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.08
    assert wasserstein(x) < 0.25
