"""DEIS: orders against the exact flow, DDIM at degree 0, diffusers' steps, exact polynomials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from torch import Tensor

from core.denoiser import Conditioning
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule
from core.solvers.ddim import DDIM
from core.solvers.deis import DEIS
from core.solvers.sampling import log_snr_times, sample


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_order_is_one_over_the_degree(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]], degree: Literal[0, 1, 2, 3]
) -> None:
    solver = DEIS(degree=degree)
    slopes = orders(solver, main_schedule, (64, 128), given=degree)
    assert slopes[-1] == pytest.approx(degree + 1, abs=0.25)


@pytest.mark.parametrize("variable", ["r", "log_snr"])
def test_order_does_not_hang_on_the_variable(
    main_schedule: NoiseSchedule,
    orders: Callable[..., list[float]],
    variable: Literal["r", "log_snr"],
) -> None:
    slopes = orders(DEIS(degree=2, variable=variable), main_schedule, (64, 128), given=2)
    assert slopes[-1] == pytest.approx(3, abs=0.25)


def test_degree_zero_is_ddim(main_schedule: NoiseSchedule, mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 7)
    ours = sample(denoiser, DEIS(degree=0), times, x)
    assert torch.equal(ours.x, sample(denoiser, DDIM(), times, x).x)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_an_eps_that_is_a_polynomial_in_t_is_integrated_exactly(
    degree: Literal[1, 2, 3],
) -> None:
    """On FlowSchedule dy/dr = t^degree has a closed solution: r = t/(1-t), t = r/(1+r)."""
    schedule = FlowSchedule()

    class Power:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_eps(t[:, None] ** degree, x_t, t, schedule)

    def integral(t: Tensor) -> Tensor:
        """int t^k dr = int t^k / (1-t)^2 dt, from 0, by Gauss-Legendre of high degree."""
        nodes, weights = torch.linalg.eigh(_jacobi(40))
        z = (nodes + 1) / 2 * t
        return (weights[0] ** 2 * t * z**degree / (1 - z) ** 2).sum()

    times = torch.tensor([0.7, 0.62, 0.55, 0.5, 0.37], dtype=torch.float64)
    denoiser, solver = Power(), DEIS(degree=degree)
    x = torch.zeros(1, 1, dtype=torch.float64)
    history = tuple(denoiser(x, times[k : k + 1]) for k in (2, 1, 0))[:degree]
    t, s = times[3:4], times[4:5]
    x_s, _ = solver.step(denoiser, x, t, s, history)
    exact = (1 - s) * (integral(s) - integral(t))
    torch.testing.assert_close(x_s[0], exact, rtol=1e-11, atol=1e-12)


def _jacobi(n: int) -> Tensor:
    """Whose eigenvalues are the Gauss-Legendre nodes on [-1, 1] (Golub and Welsch)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    return torch.diag(off, 1) + torch.diag(off, -1)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # in diffusers itself
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_steps_are_diffusers(
    degree: Literal[0, 1, 2],
    steps_with_diffusers: Callable[..., tuple[list[Tensor], list[Tensor]]],
) -> None:
    scheduler = DEISMultistepScheduler(solver_order=degree + 1, lower_order_final=False)
    scheduler.set_timesteps(12)
    ours, theirs = steps_with_diffusers(scheduler, DEIS(degree=degree, variable="log_snr"))
    assert len(ours) == 11
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)


def test_calls_and_ends(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
    path = sample(denoiser, DEIS(), times, x)
    assert path.nfe == 40
    by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
    assert (path.x - exact).abs().mean() < 0.6 * by_ddim


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="degree"):
        DEIS(degree=4)  # pyright: ignore[reportArgumentType]  # that is the test
    with pytest.raises(ValueError, match="variable"):
        DEIS(variable="rho")  # pyright: ignore[reportArgumentType]  # that is the test
