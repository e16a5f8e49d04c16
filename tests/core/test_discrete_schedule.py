"""Schedules made from diffusers: what its own schedulers add as noise is the reference."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from core.discrete_schedule import DiscreteVPSchedule
from core.schedule import FlowSchedule, diffuse, from_diffusers

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def discrete(scheduler: object) -> DiscreteVPSchedule:
    schedule = from_diffusers(scheduler)
    assert isinstance(schedule, DiscreteVPSchedule)
    return schedule


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDIMScheduler(**STABLE_DIFFUSION),
        DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=True),
        PNDMScheduler(**STABLE_DIFFUSION, num_train_timesteps=100),
    ],
    ids=["linear", "stable diffusion", "cosine", "zero snr", "100 steps"],
)
def test_noise_is_the_schedulers_at_its_timesteps(scheduler, generator: torch.Generator) -> None:
    schedule = discrete(scheduler)
    n = scheduler.config["num_train_timesteps"]
    timesteps = torch.arange(n)
    x0, eps = (torch.randn(n, 2, 3, generator=generator) for _ in range(2))
    t = timesteps.double() / (n - 1)
    torch.testing.assert_close(schedule.timestep(t), timesteps.double(), rtol=0, atol=1e-9)
    expected = scheduler.add_noise(x0, eps, timesteps)
    torch.testing.assert_close(diffuse(schedule, x0, eps, t), expected, rtol=0, atol=2e-6)


def test_an_euler_schedulers_network_is_variance_preserving() -> None:
    scheduler = EulerDiscreteScheduler(**STABLE_DIFFUSION)
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    expected = DDIMScheduler(**STABLE_DIFFUSION).alphas_cumprod.double()
    torch.testing.assert_close(discrete(scheduler).alpha(t).square(), expected, rtol=1e-6, atol=0)


def test_log_snr_is_linear_between_timesteps() -> None:
    schedule = discrete(DDIMScheduler())
    step = 1 / 999
    t = torch.tensor([10, 10.25, 10.5, 11], dtype=torch.float64) * step
    left, quarter, middle, right = schedule.log_snr(t).tolist()
    assert quarter == pytest.approx(0.75 * left + 0.25 * right, abs=1e-10)
    assert middle == pytest.approx((left + right) / 2, abs=1e-10)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    schedule = discrete(DDIMScheduler(rescale_betas_zero_snr=True))
    assert schedule.reaches_noise
    near_end = torch.tensor([0.9995, 0.99999, 1.0], dtype=torch.float64)
    alpha = schedule.alpha(near_end)
    assert alpha[-1].item() == 0
    assert bool((alpha.diff() < 0).all())
    # alpha / sigma is linear in the last interval, and sigma is 1 there up to alpha^2.
    last = torch.tensor([998 / 999, 998.5 / 999], dtype=torch.float64)
    ratio = schedule.alpha(last) / schedule.sigma(last)
    assert ratio[1].item() == pytest.approx(ratio[0].item() / 2, rel=1e-9)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ],
    ids=["flow", "shifted flow", "flow by DPM-Solver"],
)
def test_flow_matching_gives_the_flow_schedule(scheduler) -> None:
    assert from_diffusers(scheduler) == FlowSchedule()


def test_flow_noise_is_the_schedulers(generator: torch.Generator) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    timesteps = torch.as_tensor(scheduler.timesteps)[[0, 100, 500, 900, 999]]
    x0, eps = (torch.randn(5, 3, generator=generator) for _ in range(2))
    expected = scheduler.scale_noise(*(cast(torch.FloatTensor, v) for v in (x0, timesteps, eps)))
    # Such a network is told a thousand times sigma, which is t.
    torch.testing.assert_close(diffuse(FlowSchedule(), x0, eps, timesteps / 1000), expected)


def test_other_schedulers_are_refused_with_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"EDMEulerScheduler .* VESchedule"):
        from_diffusers(EDMEulerScheduler())


@pytest.mark.parametrize(
    "alphas_cumprod",
    [[0.9, 0.5], [0.9, 0.95, 0.1], [1.0, 0.5, 0.1], [0.9, 0.0, 0.0], [0.9, 0.5, -0.1]],
)
def test_bad_alphas_are_refused(alphas_cumprod: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteVPSchedule(torch.tensor(alphas_cumprod))
