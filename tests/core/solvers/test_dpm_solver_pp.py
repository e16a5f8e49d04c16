"""DPM-Solver++: orders against the exact flow, diffusers' steps, calls, and the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule
from core.solvers.ddim import DDIM
from core.solvers.dpm_solver_pp import DPMSolverPPMultistep, DPMSolverPPSinglestep
from core.solvers.sampling import Solver, log_snr_times, sample
from core.solvers.unipc import UniPC


def test_2m_has_order_two(main_schedule: NoiseSchedule, orders: Callable[..., list[float]]) -> None:
    assert orders(DPMSolverPPMultistep(), main_schedule, (64, 128, 256)) == pytest.approx(
        [2, 2], abs=0.08
    )


def test_3m_has_order_three_from_an_exact_history(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]]
) -> None:
    solver = DPMSolverPPMultistep(order=3)
    assert orders(solver, main_schedule, (64, 128, 256), given=2) == pytest.approx([3, 3], abs=0.1)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
def test_2s_has_order_two(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]], ratio: float
) -> None:
    solver = DPMSolverPPSinglestep(ratio=ratio)
    assert orders(solver, main_schedule, (64, 128, 256)) == pytest.approx([2, 2], abs=0.1)


def test_order_one_is_ddim(main_schedule: NoiseSchedule, mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ours = sample(denoiser, DPMSolverPPMultistep(order=1), times, x)
    torch.testing.assert_close(ours.x, sample(denoiser, DDIM(), times, x).x, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in diffusers itself
@pytest.mark.parametrize("order", [1, 2])
def test_multistep_steps_are_diffusers(
    order: Literal[1, 2], steps_with_diffusers: Callable[..., tuple[list[Tensor], list[Tensor]]]
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="dpmsolver++", lower_order_final=False
    )
    scheduler.set_timesteps(12)
    ours, theirs = steps_with_diffusers(scheduler, DPMSolverPPMultistep(order=order))
    assert len(ours) == 11
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_3m_is_unip_3(main_schedule: NoiseSchedule, mixture_1d: GaussianMixture) -> None:
    """Both integrate the parabola through three predictions; diffusers' 3M halves its square."""
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7).square()
    ours = sample(denoiser, DPMSolverPPMultistep(order=3), times, x)
    unip = sample(denoiser, UniPC(p=3, corrected=False), times, x)
    # With two predictions UniP takes B(h)/2 where 2M takes (1 - e^-h)/2: with "bh2" the same.
    torch.testing.assert_close(ours.x, unip.x, rtol=0, atol=1e-11)


def test_calls_and_ends(mixture_1d: GaussianMixture) -> None:
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    for schedule in (FlowSchedule(), CosineSchedule()):
        denoiser = MixtureDenoiser(mixture_1d, schedule)
        exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
        by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
        cases: list[tuple[Solver[Any], int]] = [
            (DPMSolverPPMultistep(), 40),
            (DPMSolverPPMultistep(order=3), 40),
            (DPMSolverPPSinglestep(), 78),
        ]
        for solver, calls in cases:
            path = sample(denoiser, solver, times, x)
            assert path.nfe == calls
            assert (path.x - exact).abs().mean() < 0.6 * by_ddim


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        DPMSolverPPMultistep(order=4)  # pyright: ignore[reportArgumentType]  # that is the test
    with pytest.raises(ValueError, match="ratio"):
        DPMSolverPPSinglestep(ratio=0.0)
