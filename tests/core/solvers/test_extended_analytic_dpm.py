"""Extended Analytic-DPM: with the exact second moment, the true posterior variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from core.distillation.mixture_ground import two_mode_mixture
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import MLP
from core.schedule import FlowSchedule, NoiseSchedule, diffuse, noise_like
from core.solvers.ddim import DDIM
from core.solvers.ddpm import transition_variance
from core.solvers.extended_analytic_dpm import (
    ExtendedAnalyticDPM,
    SecondMomentTraining,
    second_moment_loss,
)
from core.solvers.sampling import sample
from core.training import train


class ExactSecondMoment:
    """E[eps^2 | x_t] = E[eps | x_t]^2 + (alpha/sigma)^2 Var[x0 | x_t]."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.mixture, self.schedule = mixture, schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        noised = self.mixture.noised(alpha, sigma)
        spread = noised.x0_covariance(x_t).diagonal(dim1=1, dim2=2)
        eps = -sigma[:, None] * noised.score(x_t)
        return eps.square() + (alpha / sigma).square()[:, None] * spread


def moments_of_a_step(
    solver: ExtendedAnalyticDPM, denoiser: MixtureDenoiser, x: Tensor, t: float, s: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_s, each of x's shape, from two draws with known noise."""
    at_t, at_s = (torch.full((len(x),), each, dtype=torch.float64) for each in (t, s))
    ends, noises = [], []
    for seed in (0, 1):
        noises.append(noise_like(x, torch.Generator().manual_seed(seed)))
        end, _ = solver.step(denoiser, x, at_t, at_s, None, torch.Generator().manual_seed(seed))
        ends.append(end)
    std = (ends[1] - ends[0]) / (noises[1] - noises[0])
    return ends[0] - std * noises[0], std.square()


def test_a_steps_moments_are_the_mixtures_given_x_t(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    """p(x_s | x_t) is p_s(x_s) p(x_t | x_s), normalised and integrated by quadrature."""
    t, s = 0.3, 0.15
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    solver = ExtendedAnalyticDPM(second_moment=ExactSecondMoment(mixture_1d, main_schedule))
    mean, variance = moments_of_a_step(solver, denoiser, x, t, s)

    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    at_t, at_s = (torch.tensor([each], dtype=torch.float64) for each in (t, s))
    noised = mixture_1d.noised(
        main_schedule.alpha(at_s).expand(len(grid)), main_schedule.sigma(at_s).expand(len(grid))
    )
    gain = main_schedule.alpha(at_t) / main_schedule.alpha(at_s)
    beta = transition_variance(main_schedule, at_t, at_s)
    log_joint = noised.log_density(grid[:, None]) - (x - gain * grid).square() / (2 * beta)
    posterior = torch.softmax(log_joint, 1)
    exact_mean = posterior @ grid
    exact_variance = (posterior * (grid - exact_mean[:, None]).square()).sum(1)
    torch.testing.assert_close(mean[:, 0], exact_mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance[:, 0], exact_variance, rtol=1e-8, atol=1e-8)
    # Var[x_s | x_t] is another one at every x_t: that is what Analytic-DPM cannot follow.
    assert variance.max() > 1.1 * variance.min()


def test_every_element_has_its_own_variance(main_schedule: NoiseSchedule) -> None:
    """A Gaussian of independent elements: Var[x_s | x_t] by linear regression."""
    variances = torch.tensor([0.05, 2.0], dtype=torch.float64)
    gaussian = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[0.3, -0.2]], dtype=torch.float64),
        covariances=variances[None],
    )
    t, s = 0.7, 0.45
    x = torch.tensor([[0.1, -0.4], [1.0, 2.0]], dtype=torch.float64)
    solver = ExtendedAnalyticDPM(second_moment=ExactSecondMoment(gaussian, main_schedule))
    denoiser = MixtureDenoiser(gaussian, main_schedule)
    _, variance = moments_of_a_step(solver, denoiser, x, t, s)
    at = torch.tensor([t, s], dtype=torch.float64)
    alpha, sigma = main_schedule.alpha(at), main_schedule.sigma(at)
    of_t, of_s = (alpha[k] ** 2 * variances + sigma[k] ** 2 for k in (0, 1))
    exact = of_s - (alpha[0] / alpha[1] * of_s).square() / of_t
    torch.testing.assert_close(variance, exact.expand(2, 2), rtol=1e-8, atol=1e-8)


def test_the_loss_is_least_at_the_second_moment(
    main_schedule: NoiseSchedule, generator: torch.Generator
) -> None:
    """For a Gaussian, E[eps^2 | x_t] is a parabola in x_t: one Newton step finds its three."""
    n, time = 200_000, 0.5
    mean, std = 0.7, 0.5
    x0 = mean + std * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t = torch.full((n,), time, dtype=torch.float64)

    def loss(coefficients: Tensor) -> Tensor:
        def parabola(x_t: Tensor, t: Tensor) -> Tensor:
            return coefficients[0] + coefficients[1] * x_t + coefficients[2] * x_t.square()

        return second_moment_loss(parabola, main_schedule, x0, eps, t)

    start = torch.zeros(3, dtype=torch.float64)
    step = torch.linalg.solve(torch.func.hessian(loss)(start), torch.func.grad(loss)(start))
    found = start - step
    gaussian = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[mean]], dtype=torch.float64),
        covariances=torch.tensor([[std**2]], dtype=torch.float64),
    )
    x_t = torch.linspace(-0.5, 1.2, 5, dtype=torch.float64)[:, None]
    exact = ExactSecondMoment(gaussian, main_schedule)(x_t, t[:5])
    fitted = found[0] + found[1] * x_t + found[2] * x_t.square()
    # Four standard errors of a fit of three to squares of normals, and a little for the rim.
    torch.testing.assert_close(fitted, exact, rtol=0, atol=6 * math.sqrt(2 * 3 / n) * 2)


def test_a_network_learns_the_posterior_variance() -> None:
    """(sigma/alpha)^2 (h - eps^2) with the exact eps: near the mixture's own at every x_t, where
    Analytic-DPM's mean over x_t is not."""
    mixture, schedule, low, high = two_mode_mixture(), FlowSchedule(), 0.25, 0.65
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(1, width=64)
    method = SecondMomentTraining(
        network, schedule, lambda n, generator: mixture.sample(n, generator)[0],
        steps=1500, batch=512, t_min=low, t_max=high,
    )  # fmt: skip
    train(method, seed=0)
    exact = ExactSecondMoment(mixture, schedule)
    generator = torch.Generator().manual_seed(1)
    for time in (0.35, 0.45, 0.55):
        x0, _ = mixture.sample(4000, generator)
        t = torch.full((4000,), time)
        x_t = diffuse(schedule, x0, noise_like(x0, generator), t)
        with torch.no_grad():
            eps = MixtureDenoiser(mixture, schedule)(x_t, t).eps
            of_spread = (schedule.sigma(t) / schedule.alpha(t)).square()[:, None]
            learned = of_spread * (network(x_t, t) - eps.square())
            wanted = of_spread * (exact(x_t, t) - eps.square())
        missed = (learned - wanted).square().mean().sqrt()
        assert missed < 0.3 * (wanted - wanted.mean()).square().mean().sqrt()
        assert float(learned.mean()) == pytest.approx(float(wanted.mean()), rel=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_second_moment_that_falls_short_leaves_ddim(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, eta: float
) -> None:
    """Var[x0 | x_t] is not negative: with h = 0 what is left is the noise of DDIM at eta."""
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = torch.tensor([0.6, 0.4], dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    solver = ExtendedAnalyticDPM(second_moment=lambda x_t, t: torch.zeros_like(x_t), eta=eta)
    ours, ddim = (
        sample(denoiser, each, times, x, generator=torch.Generator().manual_seed(0)).x
        for each in (solver, DDIM(eta=eta))
    )
    torch.testing.assert_close(ours, ddim, rtol=1e-10, atol=1e-10)


def test_misuse_is_refused(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    schedule = FlowSchedule()
    exact = ExactSecondMoment(mixture_1d, schedule)
    with pytest.raises(ValueError, match="t_min"):
        SecondMomentTraining(
            MLP(1), schedule, lambda n, generator: torch.zeros(n, 1), steps=1, t_min=0.5, t_max=0.2
        )
    with pytest.raises(ValueError, match="eta"):
        ExtendedAnalyticDPM(second_moment=exact, eta=2.0)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    solver = ExtendedAnalyticDPM(second_moment=exact)
    x = torch.zeros(2, 1, dtype=torch.float64)
    falling = torch.tensor([0.6, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="generator"):
        sample(denoiser, solver, falling, x)
    with pytest.raises(ValueError, match="toward the noise"):
        sample(denoiser, solver, falling.flip(0), x, generator=generator)
    from_noise = torch.tensor([1.0, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha = 0"):
        sample(denoiser, solver, from_noise, x, generator=generator)
