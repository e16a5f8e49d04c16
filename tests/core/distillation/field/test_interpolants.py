"""Stochastic interpolants: the regression's answer is the exact velocity; training follows it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.distillation.field.interpolants import StochasticInterpolants
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.metrics import wasserstein_1d
from core.mixture import GaussianMixture
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule
from core.training import train


@pytest.mark.parametrize("path", [FlowSchedule(), CosineSchedule()], ids=["flow", "cosine"])
@pytest.mark.parametrize("time", [0.3, 0.6])
def test_the_rates_mean_is_the_velocity(
    path: NoiseSchedule, time: float, mixture_1d: GaussianMixture
) -> None:
    """E[h(I_t) (dI_t/dt - v(I_t))] = 0 for any h, by quadrature over x0, x_T and z.

    sigma x_T + gamma z is one normal of deviation rho = sqrt(sigma^2 + gamma^2), so v is the
    velocity of the schedule (alpha, rho).
    """
    method = StochasticInterpolants(mixture_ground(mixture_1d), path=path, latent_std=0.5, steps=1)
    nodes = torch.arange(-8, 8.01, 0.25, dtype=torch.float64)
    density = torch.exp(-nodes.square() / 2)
    density = density / density.sum()
    u, x_T, z = (v.reshape(-1, 1) for v in torch.meshgrid(nodes, nodes, nodes, indexing="ij"))
    joint = (density[:, None, None] * density[:, None] * density).reshape(-1)
    t = torch.full((len(u),), time, dtype=torch.float64)
    one = torch.tensor([time], dtype=torch.float64, requires_grad=True)
    gamma = 0.5 * torch.sin(torch.pi * one).square()
    alpha, rho = path.alpha(one), (path.sigma(one).square() + gamma.square()).sqrt()
    (alpha_rate,) = torch.autograd.grad(alpha.sum(), one, retain_graph=True)
    (rho_rate,) = torch.autograd.grad(rho.sum(), one)
    noised = mixture_1d.noised(alpha.detach(), rho.detach())

    def velocity(x: Tensor) -> Tensor:
        x0 = noised.x0_mean(x)
        return alpha_rate * x0 + rho_rate * (x - alpha.detach() * x0) / rho.detach()

    totals = torch.zeros(3, dtype=torch.float64)
    sizes = torch.zeros(3, dtype=torch.float64)
    for share, mean, variance in zip(
        mixture_1d.weights, mixture_1d.means, mixture_1d.covariances, strict=True
    ):
        x, rate = method.target(mean + variance.sqrt() * u, x_T, z, t)
        off = (rate - velocity(x))[:, 0]
        tests = torch.stack([torch.ones_like(off), torch.tanh(x[:, 0]), torch.sin(3 * x[:, 0])])
        totals += share * (tests * off * joint).sum(1)
        sizes += share * ((tests * off).abs() * joint).sum(1)
    assert bool((totals.abs() < 1e-8 * sizes).all())
    assert bool((sizes > 0.1).all())


def test_the_ends_are_the_two_densities(generator: torch.Generator) -> None:
    other = GaussianMixture(
        weights=torch.ones(1), means=torch.tensor([[3.0]]), covariances=torch.tensor([[0.1]])
    )
    method = StochasticInterpolants(
        mixture_ground(two_mode_mixture()), base=lambda n, g: other.sample(n, g)[0], steps=1
    )
    x0, x_T, z = torch.randn(3, 5, 1, generator=generator).unbind()
    torch.testing.assert_close(method.target(x0, x_T, z, torch.zeros(5))[0], x0)
    torch.testing.assert_close(method.target(x0, x_T, z, torch.ones(5))[0], x_T)
    assert method.noise(1000, generator).mean().item() == pytest.approx(3, abs=0.1)


def test_training_carries_the_noise_to_the_data() -> None:
    ground = mixture_ground(two_mode_mixture())
    torch.manual_seed(0)
    method = StochasticInterpolants(ground, steps=600)
    train(method)
    generator = torch.Generator().manual_seed(2)
    z = method.noise(3000, generator)
    x0 = ground.data(3000, generator).x0
    with torch.no_grad():
        x = method.sample(z, 16, None, generator)[-1]
    # The noise itself is at 0.47.
    assert float(wasserstein_1d(x[:, 0], x0[:, 0]).sqrt()) < 0.2


def test_settings_that_cannot_work_are_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    with pytest.raises(ValueError, match="CosineSchedule or FlowSchedule"):
        StochasticInterpolants(ground, path=VPSchedule(), steps=1)
    with pytest.raises(ValueError, match="latent_std must be at least 0"):
        StochasticInterpolants(ground, latent_std=-0.1, steps=1)
