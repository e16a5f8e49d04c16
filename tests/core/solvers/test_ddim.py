"""DDIM: its order against the exact flow, its exact cases, its noise, and diffusers' steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import (
    CosineSchedule,
    FlowSchedule,
    NoiseSchedule,
    VPSchedule,
    diffuse,
    from_diffusers,
)
from core.solvers.ddim import DDIM, ddim_step
from core.solvers.sampling import log_snr_times, sample


def filled(n: int, value: float) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def grid(n: int = 33) -> Tensor:
    return torch.linspace(-1.5, 1.5, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.1), (0.1, 0.5)], ids=["denoise", "invert"])
def test_order_is_one(
    schedule: NoiseSchedule, orders: Callable[..., list[float]], start: float, end: float
) -> None:
    slopes = orders(DDIM(), schedule, (64, 128, 256), start=start, end=end)
    assert slopes == pytest.approx([DDIM().order] * 2, abs=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_exact_for_a_dirac_in_any_steps(
    schedule: NoiseSchedule, eta: float, generator: torch.Generator
) -> None:
    point = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    dirac = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64), means=point, covariances=torch.zeros(1, 2)
    )
    x = diffuse(
        schedule,
        point.expand(4, 2),
        torch.randn(4, 2, generator=generator).double(),
        filled(4, 0.9),
    )
    times = torch.tensor([0.9, 0.6, 0.07], dtype=torch.float64)
    end = sample(MixtureDenoiser(dirac, schedule), DDIM(eta=eta), times, x, generator=generator).x
    # Whatever noise is left, x0 can be read from it exactly: it was never lost.
    residual = (end - schedule.alpha(times[-1]) * point) / schedule.sigma(times[-1])
    if eta == 0:
        start = (x - schedule.alpha(times[0]) * point) / schedule.sigma(times[0])
        torch.testing.assert_close(residual, start, rtol=1e-9, atol=1e-9)
    assert bool((residual.abs() < 5).all())
    if schedule.reaches_data:
        to_data = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
        solver = DDIM(eta=eta)
        clean = sample(_X0Only(point, schedule), solver, to_data, x, generator=generator).x
        torch.testing.assert_close(clean, point.expand(4, 2), rtol=1e-12, atol=1e-12)


class _X0Only:
    """Answers x0, as most networks of flows do: nothing but x0 exists at t = 0."""

    def __init__(self, point: Tensor, schedule: NoiseSchedule) -> None:
        self.point = point
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(self.point.expand_as(x_t), x_t, t, self.schedule)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_from_end_to_end(
    schedule: NoiseSchedule, eta: float, mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    n = 4000
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    times = torch.linspace(1, 0, 129, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    data = sample(denoiser, DDIM(eta=eta), times, x, generator=generator).x
    mean = (mixture_1d.weights @ mixture_1d.means).item()
    second = (mixture_1d.weights @ (mixture_1d.covariances + mixture_1d.means**2)).item()
    # Three standard errors, and a little for 128 steps.
    assert data.mean().item() == pytest.approx(mean, abs=3 * math.sqrt(second / n) + 0.01)
    assert data.square().mean().item() == pytest.approx(second, abs=0.06)


def test_inversion_brings_the_noise_back(mixture_1d: GaussianMixture) -> None:
    schedule = VPSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    x = grid()
    errors = []
    for steps in (100, 200):
        times = log_snr_times(schedule, 0.6, 0.05, steps)
        there = sample(denoiser, DDIM(), times, x).x
        back = sample(denoiser, DDIM(), times.flip(0), there).x
        errors.append((back - x).abs().max().item())
    assert errors[0] < 0.2
    assert errors[1] < 0.6 * errors[0]


def test_noise_is_ddpms_posterior_at_eta_one(generator: torch.Generator) -> None:
    """Mean and variance of q(x_s | x_t, x0) (DDPM, arXiv 2006.11239, Eq. 7), for a known x0."""
    schedule = CosineSchedule()
    t, s = filled(1, 0.6), filled(1, 0.5)
    point = torch.tensor([[0.7]], dtype=torch.float64)
    x_t = torch.tensor([[-0.4]], dtype=torch.float64)
    n = 200_000
    denoiser = _X0Only(point, schedule)
    x_s, _ = DDIM(eta=1.0).step(
        denoiser, x_t.expand(n, 1), t.expand(n), s.expand(n), None, generator
    )
    bar_t, bar_s = schedule.alpha(t).square().item(), schedule.alpha(s).square().item()
    step_alpha = bar_t / bar_s
    beta = 1 - step_alpha
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * 0.7
    mean += math.sqrt(step_alpha) * (1 - bar_s) / (1 - bar_t) * -0.4
    variance = (1 - bar_s) / (1 - bar_t) * beta
    standard_error = math.sqrt(variance / n)
    assert x_s.mean().item() == pytest.approx(mean, abs=4 * standard_error)
    assert x_s.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_steps_are_diffusers(eta: float, generator: torch.Generator) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    schedule = from_diffusers(scheduler)
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    eps = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)

    class FixedEps:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_eps(eps, x_t, t, schedule)

    for timestep in (980, 500, 20):
        ours, _ = DDIM(eta=eta).step(
            FixedEps(),
            x,
            filled(3, timestep / 999),
            filled(3, (timestep - 20) / 999),
            None,
            torch.Generator().manual_seed(5),
        )
        noise = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        theirs = scheduler.step(eps, timestep, x, eta=eta, variance_noise=noise)  # pyright: ignore[reportArgumentType]  # annotated as the legacy FloatTensor
        # Their cumulative products are in single precision.
        torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)


def test_noise_follows_the_generator(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    times = torch.linspace(1, 0, 5, dtype=torch.float64)

    def run(seed: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        return sample(denoiser, DDIM(eta=1.0), times, grid(), generator=noise).x

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_misuse_is_refused(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=1.5)
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    falling = torch.tensor([0.8, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="generator"):
        sample(denoiser, DDIM(eta=0.5), falling, grid())
    with pytest.raises(ValueError, match="eta=0 to invert"):
        sample(denoiser, DDIM(eta=0.5), falling.flip(0), grid(), generator=generator)


def test_ddim_step_keeps_the_prediction(
    schedule: NoiseSchedule, generator: torch.Generator
) -> None:
    x0, eps = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = filled(3, 0.7), torch.tensor([0.6, 0.3, 0.9], dtype=torch.float64)
    prediction = Prediction.from_x0(x0, diffuse(schedule, x0, eps, t), t, schedule)
    torch.testing.assert_close(
        ddim_step(prediction, s), diffuse(schedule, x0, eps, s), rtol=1e-10, atol=1e-10
    )
