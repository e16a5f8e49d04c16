"""DPM-Solver: orders against the exact flow, DDIM at order one, diffusers' step, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from torch import Tensor

from core.denoiser import Conditioning
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, from_diffusers
from core.solvers.ddim import DDIM
from core.solvers.dpm_solver import DPMSolver
from core.solvers.sampling import log_snr_times, sample


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]], order: Literal[1, 2, 3]
) -> None:
    slopes = orders(DPMSolver(order=order), main_schedule, (64, 128, 256))
    assert slopes == pytest.approx([order] * 2, abs=0.1)


def test_order_one_is_ddim(main_schedule: NoiseSchedule, mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ours = sample(denoiser, DPMSolver(order=1), times, x)
    assert torch.equal(ours.x, sample(denoiser, DDIM(), times, x).x)


@pytest.mark.filterwarnings("ignore:.*dpmsolver:FutureWarning")  # diffusers prefers ++
@pytest.mark.parametrize("order", [2, 3])
def test_a_step_is_diffusers_from_the_same_calls(
    order: Literal[2, 3], generator: torch.Generator
) -> None:
    """Diffusers visits whole timesteps; ours asks between them: its calls are answered there.

    The scheduler's own update is used, at the times and on the values that ours visits.
    """
    scheduler = DPMSolverSinglestepScheduler(
        solver_order=order, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    )
    schedule = from_diffusers(scheduler)
    visited: list[tuple[float, Tensor]] = []

    class Recording:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            eps = torch.tanh(x_t) * torch.cos(5 * t)[:, None]
            visited.append((schedule.log_snr(t)[0].item(), eps))
            return Prediction.from_eps(eps, x_t, t, schedule)

    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    t, s = (torch.full((3,), n / 999, dtype=torch.float64) for n in (600, 400))
    ours, _ = DPMSolver(order=order).step(Recording(), x, t, s, None)
    levels = [level for level, _ in visited] + [schedule.log_snr(s)[0].item()]
    scheduler.sigmas = torch.exp(-torch.tensor(levels, dtype=torch.float64) / 2)
    scheduler._step_index = order - 1
    outputs = [eps for _, eps in visited]
    update = (
        scheduler.singlestep_dpm_solver_second_order_update
        if order == 2
        else scheduler.singlestep_dpm_solver_third_order_update
    )
    torch.testing.assert_close(ours, update(outputs, sample=x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_calls_and_ends(order: Literal[1, 2, 3], mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    times = torch.linspace(1, 0, 21, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
    path = sample(denoiser, DPMSolver(order=order), times, x)
    assert path.nfe == 18 * order + 2
    by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
    assert (path.x - exact).abs().mean() <= (1 if order == 1 else 0.5) * by_ddim


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        DPMSolver(order=4)  # pyright: ignore[reportArgumentType]  # that is the test
