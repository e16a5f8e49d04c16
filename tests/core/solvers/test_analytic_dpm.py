"""Analytic-DPM: its variance against the mixture's own posterior, its formula, its moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule
from core.solvers.analytic_dpm import AnalyticDPM, x0_variance
from core.solvers.ddpm import DDPM
from core.solvers.sampling import log_snr_times, sample


def single(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_x0_variance_is_the_posteriors(
    main_schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    times = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    data, _ = mixture_2d.sample(20_000, generator)
    denoiser = MixtureDenoiser(mixture_2d, main_schedule)
    found = x0_variance(denoiser, data, times, generator)
    for time, variance in zip(times, found, strict=True):
        t = time.expand(len(data))
        alpha, sigma = main_schedule.alpha(t), main_schedule.sigma(t)
        x_t = alpha[:, None] * data
        x_t = x_t + sigma[:, None] * torch.randn(
            data.shape, generator=generator, dtype=torch.float64
        )
        covariance = mixture_2d.noised(alpha, sigma).x0_covariance(x_t)
        exact = covariance.diagonal(dim1=1, dim2=2).mean()
        # Four standard errors of a mean of squared normals, which the estimate multiplies by
        # sigma^2/alpha^2: near the noise there is little to be known.
        error = 4 * (sigma[0] / alpha[0]).square().item() * math.sqrt(2 / data.numel())
        assert variance.item() == pytest.approx(exact.item(), abs=error)


def test_a_steps_variance_is_that_of_x_s_given_x_t(
    main_schedule: NoiseSchedule, generator: torch.Generator
) -> None:
    """E Var[x_s | x_t] of a Gaussian is known: joint Gaussian regression of x_s on x_t."""
    mean, std, t, s = 0.7, 0.5, single(0.6), single(0.4)
    gaussian = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[mean]], dtype=torch.float64),
        covariances=torch.tensor([[std**2]], dtype=torch.float64),
    )
    denoiser = MixtureDenoiser(gaussian, main_schedule)
    alpha_t, sigma_t = main_schedule.alpha(t).item(), main_schedule.sigma(t).item()
    alpha_s, sigma_s = main_schedule.alpha(s).item(), main_schedule.sigma(s).item()
    of_x0 = std**2 * sigma_t**2 / (alpha_t**2 * std**2 + sigma_t**2)
    solver = AnalyticDPM(times=t, variances=single(of_x0))
    n = 100_000
    x_s, _ = solver.step(
        denoiser, torch.full((n, 1), 0.3).double(), t.expand(n), s.expand(n), None, generator
    )
    var_s = (alpha_s * std) ** 2 + sigma_s**2
    var_t = (alpha_t * std) ** 2 + sigma_t**2
    covariance = alpha_t / alpha_s * var_s
    exact = var_s - covariance**2 / var_t
    assert x_s.var().item() == pytest.approx(exact, rel=4 * math.sqrt(2 / n))
    exact_mean = alpha_s * mean + covariance / var_t * (0.3 - alpha_t * mean)
    assert x_s.mean().item() == pytest.approx(exact_mean, abs=4 * math.sqrt(exact / n))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_variance_is_the_papers(eta: float, mixture_1d: GaussianMixture) -> None:
    """Theorem 1 in the paper's own alpha-bar and beta-bar, on a variance-preserving schedule."""
    schedule, gamma = CosineSchedule(), 0.8
    t, s = single(0.6), single(0.4)
    bar_t, bar_s = schedule.alpha(t).square().item(), schedule.alpha(s).square().item()
    beta_t, beta_s = 1 - bar_t, 1 - bar_s
    alpha_step = bar_t / bar_s
    lam2 = eta**2 * beta_s / beta_t * (1 - alpha_step)
    paper = lam2 + (math.sqrt(beta_t / alpha_step) - math.sqrt(beta_s - lam2)) ** 2 * (
        1 - beta_t * gamma
    )
    variances = single(beta_t / bar_t * (1 - beta_t * gamma))
    solver = AnalyticDPM(times=t, variances=variances, eta=eta)
    x = torch.zeros(2, 1, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    x_s, _ = solver.step(
        denoiser, x, t.expand(2), s.expand(2), None, torch.Generator().manual_seed(0)
    )
    z = torch.randn(2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = ((x_s[0] - x_s[1]) / (z[0] - z[1])).item()
    assert std**2 == pytest.approx(paper, rel=1e-9)


def test_few_steps_keep_the_variance_that_ddpm_loses(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    n = 20_000
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    times = log_snr_times(main_schedule, 0.9, 0.05, 6)
    data, _ = mixture_1d.sample(n, generator)
    solver = AnalyticDPM(
        times=times[:-1], variances=x0_variance(denoiser, data, times[:-1], generator)
    )
    alpha, sigma = main_schedule.alpha(times), main_schedule.sigma(times)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    start = alpha[0] * data + sigma[0] * noise
    wanted = (alpha[-1].square() * data.var() + sigma[-1].square()).item()
    path = sample(denoiser, solver, times, start, generator=generator)
    by_ddpm = sample(denoiser, DDPM(), times, start, generator=generator)
    assert path.nfe == 6
    assert path.x.var().item() == pytest.approx(wanted, rel=0.04)
    assert abs(path.x.var().item() - wanted) < 0.5 * abs(by_ddpm.x.var().item() - wanted)


def test_misuse_is_refused(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="shape"):
        AnalyticDPM(times=single(0.5), variances=torch.ones(2))
    with pytest.raises(ValueError, match="eta"):
        AnalyticDPM(times=single(0.5), variances=single(0.1), eta=2.0)
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    solver = AnalyticDPM(times=single(0.5), variances=single(0.1))
    x = torch.zeros(2, 1, dtype=torch.float64)
    falling = torch.tensor([0.6, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="own times"):
        sample(denoiser, solver, falling, x, generator=generator)
    with pytest.raises(ValueError, match="generator"):
        sample(denoiser, solver, falling, x)
    with pytest.raises(ValueError, match="toward the noise"):
        sample(denoiser, solver, falling.flip(0), x, generator=generator)
    with pytest.raises(ValueError, match="inside that end"):
        x0_variance(denoiser, x, single(1.0), generator)
