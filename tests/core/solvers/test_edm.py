"""EDM: Heun without churn, Algorithm 2 written out with it, and a Gaussian's moments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, NoiseSchedule, VESchedule, noise_like
from core.solvers.edm import EDM
from core.solvers.heun import Heun
from core.solvers.sampling import log_snr_times, sample


def grid(n: int = 9) -> Tensor:
    return torch.linspace(-1.5, 1.5, n, dtype=torch.float64)[:, None]


def test_without_churn_it_is_heun(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ours = sample(denoiser, EDM(), times, grid())
    heun = sample(denoiser, Heun(), times, grid())
    assert torch.equal(ours.x, heun.x)
    assert ours.nfe == heun.nfe == 14


def test_with_churn_it_is_algorithm_2(mixture_1d: GaussianMixture) -> None:
    schedule = VESchedule(sigma_min=0.02, sigma_max=10.0)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    times = torch.linspace(0.8, 0, 9, dtype=torch.float64)
    sigmas = schedule.sigma(times).tolist()
    solver = EDM.for_steps(1.6, 8, min_noise=0.05, max_noise=2.0, noise_std=1.01)
    assert solver.churn == pytest.approx(0.2)
    start = sigmas[0] * grid()

    def slope(x: Tensor, sigma: float) -> Tensor:
        noised = mixture_1d.noised(
            torch.ones(len(x), dtype=x.dtype), torch.full((len(x),), sigma, dtype=x.dtype)
        )
        return (x - noised.x0_mean(x)) / sigma

    noise = torch.Generator().manual_seed(3)
    x, churned = start, 0
    for now, following in itertools.pairwise(sigmas):
        raised = now
        if 0.05 <= now <= 2.0:
            raised, churned = 1.2 * now, churned + 1
            x = x + math.sqrt(raised**2 - now**2) * 1.01 * noise_like(x, noise)
        first = slope(x, raised)
        second = slope(x + (following - raised) * first, following)
        x = x + (following - raised) * (first + second) / 2
    assert 0 < churned < 8
    ours = sample(denoiser, solver, times, start, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)


def test_churn_keeps_a_gaussians_moments(
    main_schedule: NoiseSchedule, generator: torch.Generator
) -> None:
    mean, std, n = 0.7, 0.5, 10_000
    gaussian = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[mean]], dtype=torch.float64),
        covariances=torch.tensor([[std**2]], dtype=torch.float64),
    )
    times = log_snr_times(main_schedule, 0.9, 0.05, 60)
    alpha, sigma = main_schedule.alpha(times), main_schedule.sigma(times)
    spread = torch.hypot(alpha * std, sigma)
    x = alpha[0] * mean + spread[0] * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    denoiser = MixtureDenoiser(gaussian, main_schedule)
    end = sample(denoiser, EDM(churn=0.1), times, x, generator=generator).x
    # Four standard errors, and a little for 60 steps.
    tolerance = 4 * spread[-1].item() / math.sqrt(n) + 0.002
    assert end.mean().item() == pytest.approx((alpha[-1] * mean).item(), abs=tolerance)
    assert end.std().item() == pytest.approx(spread[-1].item(), abs=tolerance)


def test_churn_stays_on_the_schedule(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    for schedule in (FlowSchedule(), VESchedule(sigma_min=0.02, sigma_max=10.0)):
        denoiser = MixtureDenoiser(mixture_1d, schedule)
        times = torch.linspace(1, 0, 9, dtype=torch.float64)
        end = sample(denoiser, EDM(churn=0.4), times, grid(), generator=generator).x
        assert bool(torch.isfinite(end).all())


def test_misuse_is_refused(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    for options, name in (
        ({"churn": 0.5}, "churn"),
        ({"min_noise": 2.0, "max_noise": 1.0}, "min_noise"),
        ({"noise_std": 0.0}, "noise_std"),
    ):
        with pytest.raises(ValueError, match=name):
            EDM(**options)
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    falling = torch.tensor([0.8, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="generator"):
        sample(denoiser, EDM(churn=0.1), falling, grid())
    with pytest.raises(ValueError, match="toward the noise"):
        sample(denoiser, EDM(churn=0.1), falling.flip(0), grid(), generator=generator)
