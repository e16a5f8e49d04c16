"""UniPC: orders of predictor and corrector, its identities, diffusers' steps, calls, ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule
from core.solvers.ddim import DDIM
from core.solvers.sampling import log_snr_times, sample
from core.solvers.unipc import UniPC, UniPCState


def from_history(history: tuple[Prediction, ...]) -> UniPCState:
    return UniPCState(history=history, x=history[0].x_t)


@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("corrected", [False, True], ids=["UniP", "UniPC"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_order_is_p_and_one_more_corrected(
    main_schedule: NoiseSchedule,
    orders: Callable[..., list[float]],
    p: Literal[1, 2, 3],
    corrected: bool,
    b: Literal["bh1", "bh2"],
) -> None:
    solver = UniPC(p=p, b=b, corrected=corrected)
    slopes = orders(solver, main_schedule, (64, 128), given=3, make_state=from_history)
    assert solver.order == p + corrected
    assert slopes[-1] == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("b", ["bh1", "bh2"])
def test_unip_one_is_ddim(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, b: Literal["bh1", "bh2"]
) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ours = sample(denoiser, UniPC(p=1, b=b, corrected=False), times, x)
    torch.testing.assert_close(ours.x, sample(denoiser, DDIM(), times, x).x, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in diffusers itself
@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_steps_are_diffusers(
    p: Literal[1, 2, 3],
    b: Literal["bh1", "bh2"],
    steps_with_diffusers: Callable[..., tuple[list[Tensor], list[Tensor]]],
) -> None:
    scheduler = UniPCMultistepScheduler(solver_order=p, solver_type=b, lower_order_final=False)
    scheduler.set_timesteps(12)
    ours, theirs = steps_with_diffusers(scheduler, UniPC(p=p, b=b))
    assert len(ours) == 11
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_calls_and_ends(
    schedule: NoiseSchedule, p: Literal[1, 2, 3], mixture_1d: GaussianMixture
) -> None:
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
    path = sample(denoiser, UniPC(p=p), times, x)
    assert path.nfe == 40
    by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
    assert (path.x - exact).abs().mean() < 0.6 * by_ddim


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="p must"):
        UniPC(p=4)  # pyright: ignore[reportArgumentType]  # that is the test
    with pytest.raises(ValueError, match="bh1"):
        UniPC(b="h")  # pyright: ignore[reportArgumentType]  # that is the test
