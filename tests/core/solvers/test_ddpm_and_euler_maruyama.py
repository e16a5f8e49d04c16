"""DDPM and Euler-Maruyama: DDIM's and diffusers' steps, and a Gaussian's exact moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule, from_diffusers
from core.solvers.ddim import DDIM
from core.solvers.ddpm import DDPM, transition_variance
from core.solvers.euler_maruyama import EulerMaruyama, sde_coefficients
from core.solvers.sampling import Solver, log_snr_times, sample

MEAN, STD = 0.7, 0.5


def gaussian() -> GaussianMixture:
    return GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[MEAN]], dtype=torch.float64),
        covariances=torch.tensor([[STD**2]], dtype=torch.float64),
    )


def moments_reached(
    solver: Solver[Any], schedule: NoiseSchedule, times: Tensor
) -> tuple[float, float]:
    """Mean and variance at the last time, exactly: each step is affine in x and in the noise.

    A step x -> a x + c + b z is read from three calls of it, the noise from a fixed generator.
    """
    denoiser = MixtureDenoiser(gaussian(), schedule)
    first = times[:1]
    mean = (schedule.alpha(first) * MEAN).item()
    variance = ((schedule.alpha(first) * STD).square() + schedule.sigma(first).square()).item()
    for t, s in itertools.pairwise(times):
        x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
        z = torch.randn(3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = torch.Generator().manual_seed(0)
        (y0, y1, y2), _ = solver.step(denoiser, x, t.expand(3), s.expand(3), None, noise)
        fresh = ((y2 - y0) / (z[2] - z[0])).item()
        offset = y0.item() - fresh * z[0].item()
        slope = y1.item() - fresh * z[1].item() - offset
        mean, variance = slope * mean + offset, slope**2 * variance + fresh**2
    return mean, variance


@pytest.mark.parametrize(
    "solver",
    [EulerMaruyama(), EulerMaruyama(noise=0.5), DDPM(), DDPM(variance="large")],
    ids=["em", "em half", "small", "large"],
)
def test_moments_are_recovered_to_first_order(
    solver: Solver[Any], main_schedule: NoiseSchedule
) -> None:
    end = torch.tensor(0.1, dtype=torch.float64)
    mean = (main_schedule.alpha(end) * MEAN).item()
    variance = (
        (main_schedule.alpha(end) * STD).square() + main_schedule.sigma(end).square()
    ).item()
    errors = []
    for steps in (100, 200, 400):
        times = log_snr_times(main_schedule, 0.9, 0.1, steps)
        reached = moments_reached(solver, main_schedule, times)
        errors.append(abs(reached[0] - mean) + abs(reached[1] - variance))
    assert errors[-1] < 0.02
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes == pytest.approx([1, 1], abs=0.2)


def test_without_noise_it_is_eulers_ode(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]]
) -> None:
    assert orders(EulerMaruyama(noise=0), main_schedule, (64, 128, 256)) == pytest.approx(
        [1, 1], abs=0.1
    )


def test_sde_of_vp_is_the_papers(generator: torch.Generator) -> None:
    """f = -beta/2, g^2 = beta (arXiv 2011.13456, Eq. 11)."""
    schedule = VPSchedule(beta_min=0.1, beta_max=20.0)
    t = torch.rand(7, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    f, g_squared = sde_coefficients(schedule, t)
    beta = 0.1 + t * 19.9
    torch.testing.assert_close(f, -beta / 2)
    torch.testing.assert_close(g_squared, beta)


def test_the_small_variance_is_ddim_at_eta_one(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ends = [
        sample(denoiser, solver, times, x, generator=torch.Generator().manual_seed(1))
        for solver in (DDPM(), DDIM(eta=1.0))
    ]
    assert torch.equal(ends[0].x, ends[1].x)
    assert ends[0].nfe == 7


@pytest.mark.parametrize("variance", ["small", "large"])
def test_steps_are_diffusers(
    variance: Literal["small", "large"],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = DDPMScheduler(
        variance_type="fixed_small" if variance == "small" else "fixed_large", clip_sample=False
    )
    scheduler.set_timesteps(50)
    schedule = from_diffusers(scheduler)
    eps, x, noise = (
        torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in "abc"
    )

    class FixedEps:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_eps(eps, x_t, t, schedule)

    monkeypatch.setattr("core.solvers.ddpm.noise_like", lambda x, generator: noise)
    monkeypatch.setattr("core.solvers.ddim.noise_like", lambda x, generator: noise)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: noise
    )
    for timestep in (980, 500, 20):
        t, s = (torch.full((3,), n / 999, dtype=torch.float64) for n in (timestep, timestep - 20))
        ours, _ = DDPM(variance=variance).step(FixedEps(), x, t, s, None, generator)
        theirs = scheduler.step(eps, timestep, x, return_dict=False)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_from_end_to_end(generator: torch.Generator) -> None:
    n = 20_000
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    times = torch.linspace(1, 0, 101, dtype=torch.float64)
    for schedule in (FlowSchedule(), CosineSchedule()):
        denoiser = MixtureDenoiser(gaussian(), schedule)
        for variance in ("small", "large"):
            data = sample(denoiser, DDPM(variance=variance), times, x, generator=generator).x
            assert data.mean().item() == pytest.approx(MEAN, abs=0.03)
            assert data.std().item() == pytest.approx(STD, abs=0.03)


def test_the_transition_composes(main_schedule: NoiseSchedule) -> None:
    t, m, s = (torch.tensor([value], dtype=torch.float64) for value in (0.8, 0.5, 0.2))
    scale = (main_schedule.alpha(t) / main_schedule.alpha(m)).square()
    whole = transition_variance(main_schedule, t, s)
    parts = transition_variance(main_schedule, t, m) + scale * transition_variance(
        main_schedule, m, s
    )
    torch.testing.assert_close(whole, parts)


def test_misuse_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="variance"):
        DDPM(variance="medium")  # pyright: ignore[reportArgumentType]  # that is the test
    with pytest.raises(ValueError, match="noise"):
        EulerMaruyama(noise=-1)
    denoiser = MixtureDenoiser(gaussian(), FlowSchedule())
    x = torch.zeros(2, 1, dtype=torch.float64)
    falling = torch.tensor([0.8, 0.4], dtype=torch.float64)
    for solver in (DDPM(variance="large"), EulerMaruyama()):
        with pytest.raises(ValueError, match="generator"):
            sample(denoiser, solver, falling, x)
        with pytest.raises(ValueError, match="toward the noise"):
            sample(denoiser, solver, falling.flip(0), x, generator=generator)
    from_noise = torch.tensor([1.0, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="infinite"):
        sample(denoiser, EulerMaruyama(), from_noise, x, generator=generator)
