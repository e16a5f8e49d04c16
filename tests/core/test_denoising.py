"""Scores from data, against a mixture's exact score; expectations by quadrature, not by draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.denoising import (
    DenoiserTraining,
    ScaledInput,
    annealed_langevin,
    denoising_loss,
    divergence,
    fisher_divergence,
    hyvarinen_score,
    langevin,
)
from core.distillation.method import Batch
from core.distillation.mixture_ground import two_mode_mixture
from core.distillation.students import NetworkDenoiser
from core.metrics import mode_weights, wasserstein_1d
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import MLP
from core.prediction import Parametrisation
from core.schedule import FlowSchedule, NoiseSchedule, VESchedule, VPSchedule
from core.solvers.ddim import DDIM
from core.solvers.euler_maruyama import EulerMaruyama
from core.solvers.heun import Heun
from core.solvers.sampling import Solver, sample
from core.training import train


def normal_nodes(step: float = 0.1) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal: the trapezoid rule, exact to rounding here."""
    nodes = torch.arange(-9, 9 + step / 2, step, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2)
    return nodes, weights / weights.sum()


@pytest.mark.parametrize("given", list(Parametrisation))
def test_the_exact_reading_is_the_minimiser(
    schedule: NoiseSchedule, given: Parametrisation, mixture_1d: GaussianMixture
) -> None:
    """The loss of (exact + h) is the loss of the exact reading plus E h^2, for any h."""
    nodes, weights = normal_nodes()
    k, u, e = torch.meshgrid(torch.arange(3.0).double(), nodes, nodes, indexing="ij")
    k = k.reshape(-1).long()
    x0 = mixture_1d.means[k] + mixture_1d.covariances[k].sqrt() * u.reshape(-1, 1)
    eps = e.reshape(-1, 1)
    joint = (mixture_1d.weights[:, None, None] * weights[:, None] * weights).reshape(-1)
    exact = MixtureDenoiser(mixture_1d, schedule)
    for time in (0.35, 0.8):
        t = torch.full((len(x0),), time, dtype=torch.float64)

        def expected_loss(
            change: Callable[[Tensor], Tensor], t: Tensor = t, x0: Tensor = x0, eps: Tensor = eps
        ) -> Tensor:
            def network(
                x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
            ) -> Tensor:
                return exact(x, t).read(given) + change(x)

            denoiser = NetworkDenoiser(network, schedule, given)
            return (joint * denoising_loss(denoiser, x0, eps, t)).sum()

        x_t = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * eps
        least = expected_loss(torch.zeros_like)
        for change in (torch.ones_like, torch.tanh, lambda x: torch.sin(2 * x) * x):
            extra = (joint * change(x_t).square().sum(1)).sum()
            torch.testing.assert_close(expected_loss(change), least + extra, rtol=1e-9, atol=1e-9)


def gaussian(mean: float, std: float) -> GaussianMixture:
    return GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[mean]], dtype=torch.float64),
        covariances=torch.tensor([[std**2]], dtype=torch.float64),
    )


def score_of(mixture: GaussianMixture) -> Callable[[Tensor], Tensor]:
    def score(x: Tensor) -> Tensor:
        ones = torch.ones(len(x), dtype=torch.float64)
        return mixture.noised(ones, 0 * ones).score(x)

    return score


def expectation(mixture: GaussianMixture, values: Callable[[Tensor], Tensor]) -> Tensor:
    nodes, weights = normal_nodes(0.02)
    total = torch.zeros((), dtype=torch.float64)
    for weight, mean, variance in zip(
        mixture.weights, mixture.means[:, 0], mixture.covariances[:, 0], strict=True
    ):
        total = total + weight * (weights * values((mean + variance.sqrt() * nodes)[:, None])).sum()
    return total.detach()


def test_fisher_divergence_of_gaussians() -> None:
    """v1 (1/v2 - 1/v1)^2 + (m1 - m2)^2 / v2^2."""
    p, q = gaussian(0.3, 0.5), gaussian(-0.4, 0.8)
    found = expectation(p, lambda x: fisher_divergence(score_of(p), score_of(q), x))
    v1, v2 = 0.25, 0.64
    assert found.item() == pytest.approx(v1 * (1 / v2 - 1 / v1) ** 2 + 0.49 / v2**2, rel=1e-12)
    assert expectation(p, lambda x: fisher_divergence(score_of(p), score_of(p), x)).item() == 0


def test_hyvarinen_is_fisher_without_the_datas_score(mixture_1d: GaussianMixture) -> None:
    p, s_p = mixture_1d, score_of(mixture_1d)
    for q in (gaussian(0.1, 1.0), gaussian(-0.6, 0.7), mixture_1d):
        s_q = score_of(q)
        by_data = expectation(p, lambda x, s=s_q: hyvarinen_score(s, x))
        fisher = expectation(p, lambda x, s=s_q: fisher_divergence(s_p, s, x))
        of_data = expectation(p, lambda x: s_p(x).square().sum(1))
        torch.testing.assert_close(by_data, fisher / 2 - of_data / 2, rtol=1e-10, atol=1e-10)


def test_score_matching_finds_a_gaussians_moments() -> None:
    """The gradient in a linear score's mean and variance is zero at the truth, and only there."""
    nodes, weights = normal_nodes()
    x = (0.3 + 0.5 * nodes)[:, None]

    def gradients(mean: float, variance: float) -> Tensor:
        moments = torch.tensor([mean, variance], dtype=torch.float64, requires_grad=True)
        loss = (weights * hyvarinen_score(lambda x: -(x - moments[0]) / moments[1], x)).sum()
        return torch.autograd.grad(loss, moments)[0].abs()

    assert bool((gradients(0.3, 0.25) < 1e-12).all())
    assert bool((gradients(0.33, 0.275) > 0.1).all())


def test_a_probe_estimates_the_divergence_without_bias(mixture_2d: GaussianMixture) -> None:
    """All four signs: their second moments are the identity, so their mean is the divergence."""
    x = torch.tensor([[0.3, -0.2], [1.0, 0.7], [-0.9, 0.4]], dtype=torch.float64)
    score = score_of(mixture_2d)
    estimates = [
        divergence(score, x, torch.tensor(signs, dtype=torch.float64).expand(3, 2))
        for signs in itertools.product((-1.0, 1.0), repeat=2)
    ]
    exact = torch.stack([torch.func.jacrev(lambda y: score(y[None])[0])(p).trace() for p in x])
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(divergence(score, x), exact, rtol=1e-12, atol=1e-12)
    assert float((estimates[0] - exact).detach().abs().max()) > 0.1


def test_langevins_stationary_variance(generator: torch.Generator) -> None:
    """v / (1 - h / (4 v)): 1.143 v at h = v / 2; a wrong drift or noise misses by a half."""
    x = torch.randn(100_000, 1, generator=generator)
    x = langevin(lambda x: -x / 4, 2 * x, step_size=2.0, steps=40, generator=generator)
    assert x.var().item() == pytest.approx(4 / (1 - 2 / 16), rel=0.02)
    with pytest.raises(ValueError, match="step_size must be positive"):
        langevin(lambda x: -x, x, step_size=0.0, steps=1, generator=generator)


def test_annealing_finds_the_modes_weights(generator: torch.Generator) -> None:
    """From one side of the noise; at the last level alone all stays on that side."""
    mixture = two_mode_mixture()
    denoiser = MixtureDenoiser(mixture, VESchedule(sigma_min=0.05, sigma_max=4.0))
    times = torch.linspace(1, 0, 12).tolist()
    start = 4 * torch.randn(4000, 1, generator=generator).abs()
    weight = {}
    for name, visited in (("annealed", times), ("last alone", times[-1:])):
        x = annealed_langevin(
            denoiser, start, visited, steps=25, relative_step=0.2, generator=generator
        )
        weight[name] = mode_weights(x, mixture)[0].item()
    assert weight["annealed"] == pytest.approx(0.3, abs=0.04)
    assert weight["last alone"] < 0.05


@pytest.mark.parametrize(
    ("schedule", "given", "solver"),
    [
        (FlowSchedule(), Parametrisation.VELOCITY, Heun()),
        (VPSchedule(), Parametrisation.EPS, EulerMaruyama()),
        (VESchedule(sigma_min=0.05, sigma_max=5.0), Parametrisation.X0, Heun()),
        (VPSchedule(), Parametrisation.V_PREDICTION, DDIM()),
    ],
    ids=["flow velocity ode", "vp eps sde", "ve x0 ode", "vp v ode"],
)
def test_training_on_data_recovers_the_score(
    schedule: NoiseSchedule, given: Parametrisation, solver: Solver
) -> None:
    mixture = two_mode_mixture()
    torch.manual_seed(0)
    training = DenoiserTraining(
        ScaledInput(MLP(1), schedule, 1.0),
        schedule,
        given,
        lambda n, generator: Batch(x0=mixture.sample(n, generator)[0]),
        steps=700,
    )
    train(training)
    generator = torch.Generator().manual_seed(1)
    n = 4000
    x0 = mixture.sample(n, generator)[0]
    t = 0.3 + 0.5 * torch.rand(n, generator=generator)
    x_t = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * torch.randn(
        n, 1, generator=generator
    )
    exact = MixtureDenoiser(mixture, schedule)(x_t, t).eps
    with torch.no_grad():
        found = training.denoiser(x_t, t).eps
        one_gaussian = MixtureDenoiser(gaussian(0.2, 0.96), schedule)(x_t, t).eps
        error = (found - exact).square().mean()
        assert error.item() < (one_gaussian - exact).square().mean().item() / 3
        assert error.item() < 0.1 * exact.square().mean().item()
        # From just inside alpha = 0, where the SDE's coefficients are infinite.
        last = 0.002 if schedule.reaches_data else 0.0
        grid = torch.linspace(0.995, last, 60)
        prior = float(torch.hypot(schedule.alpha(grid[:1]), schedule.sigma(grid[:1])))
        start = prior * torch.randn(n, 1, generator=generator)
        x = sample(training.denoiser, solver, grid, start, None, generator).x
    # The prior itself is 0.47 from the data and more.
    assert wasserstein_1d(x[:, 0], x0[:, 0]).sqrt().item() < 0.2


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= t_min < t_max <= 1"):
        DenoiserTraining(
            MLP(1),
            FlowSchedule(),
            Parametrisation.X0,
            lambda n, g: Batch(x0=torch.zeros(n, 1)),
            steps=1,
            t_min=0.5,
            t_max=0.5,
        )
