"""ERA: exact polynomials, DEIS and Adams' weights with the last bases, order, choice of bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule
from core.solvers.ddim import DDIM
from core.solvers.deis import DEIS
from core.solvers.era import ERA, ERAState
from core.solvers.exponential import hold_eps
from core.solvers.sampling import log_snr_times, sample


class EpsOf:
    """eps [B, 1] as a function of r = sigma / alpha alone."""

    def __init__(self, schedule: NoiseSchedule, function: Callable[[Tensor], Tensor]) -> None:
        self.schedule = schedule
        self.function = function

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        r = self.schedule.sigma(t) / self.schedule.alpha(t)
        return Prediction.from_eps(self.function(r)[:, None], x_t, t, self.schedule)


def times_of_r(*r: float) -> Tensor:
    """On FlowSchedule, r = t / (1 - t)."""
    ratios = torch.tensor(r, dtype=torch.float64)
    return ratios / (1 + ratios)


# With two bases, errors of the second and the third order nearly cancel on coarser grids.
@pytest.mark.parametrize(("bases", "steps"), [(1, 64), (2, 256), (3, 64), (4, 64)])
def test_order_is_the_number_of_bases(
    main_schedule: NoiseSchedule, orders: Callable[..., list[float]], bases: int, steps: int
) -> None:
    solver = ERA(bases=bases)
    slopes = orders(
        solver,
        main_schedule,
        (steps, 2 * steps),
        given=4,
        make_state=lambda history: ERAState(history=history),
    )
    assert solver.order == bases
    assert slopes[-1] == pytest.approx(bases, abs=0.25)


@pytest.mark.parametrize("bases", [3, 4])
def test_with_the_last_bases_it_is_deis(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, bases: Literal[3, 4]
) -> None:
    """The cubic through the foreseen value and three others is the foreseeing polynomial itself."""
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = log_snr_times(main_schedule, 0.9, 0.05, 12).square()
    ours = sample(denoiser, ERA(bases=bases, error_scale=math.inf), times, x)
    deis = sample(denoiser, DEIS(degree=2 if bases == 3 else 3), times, x)
    assert ours.nfe == deis.nfe == 12
    torch.testing.assert_close(ours.x, deis.x, rtol=1e-9, atol=1e-9)


def test_on_equal_steps_its_weights_are_adams() -> None:
    """(9, 19, -5, 1)/24 of eps at s, foreseen by 4, -6, 4, -1: together 55, -59, 37, -9."""
    schedule = FlowSchedule()
    denoiser = EpsOf(schedule, lambda r: torch.cos(7 * r))
    times = times_of_r(1.0, 0.9, 0.8, 0.7, 0.6)[:, None]
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    eps = [denoiser(x, t).eps for t in reversed(times[:4])]
    foreseen = 4 * eps[0] - 6 * eps[1] + 4 * eps[2] - eps[3]
    combined = (9 * foreseen + 19 * eps[0] - 5 * eps[1] + eps[2]) / 24
    wanted = hold_eps(schedule, x, combined, times[3], times[4])
    explicit = (55 * eps[0] - 59 * eps[1] + 37 * eps[2] - 9 * eps[3]) / 24
    torch.testing.assert_close(combined, explicit)

    history = tuple(denoiser(x, t) for t in reversed(times[:3]))
    solver = ERA(error_scale=math.inf, variable="r")
    x_s, state = solver.step(denoiser, x, times[3], times[4], ERAState(history=history))
    torch.testing.assert_close(x_s, wanted, rtol=1e-12, atol=1e-12)
    assert state.foreseen is not None
    torch.testing.assert_close(state.foreseen, foreseen, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [0.0, 0.1, 0.3, 50.0])
def test_polynomials_are_exact_whatever_the_bases(degree: int, error: float) -> None:
    """dy/dr = r^degree: y = r^(degree + 1) / (degree + 1)."""
    schedule = FlowSchedule()
    denoiser = EpsOf(schedule, lambda r: r**degree)
    times = times_of_r(2.0, 1.7, 1.5, 1.1, 1.0, 0.8, 0.7, 0.4)[:, None]
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    t, s = times[6], times[7]
    history = tuple(denoiser(x, each) for each in reversed(times[:6]))
    # What was foreseen for t, wrong by `error`.
    foreseen = denoiser(x, t).eps + error
    state = ERAState(history=history, foreseen=foreseen)
    x_s, _ = ERA(variable="r").step(denoiser, x, t, s, state)
    r_t, r_s = 0.7, 0.4
    gained = (r_s ** (degree + 1) - r_t ** (degree + 1)) / (degree + 1)
    exact = (1 - s) * (0.3 / (1 - t) + gained)
    torch.testing.assert_close(x_s[0], exact, rtol=1e-10, atol=1e-11)


def test_bases_follow_the_error_sample_by_sample() -> None:
    error = torch.tensor([0.0, 0.1, 0.2, 100.0], dtype=torch.float64)
    chosen = ERA(bases=4, error_scale=0.1).choose(13, error)
    assert chosen[:, 0].tolist() == [0, 1, 2, 3]
    # floor((m/4)^1 12) and floor((m/4)^2 12), counted from the first of 13.
    assert chosen[:, 1].tolist() == [0, 3, 6, 9]
    assert chosen[:, 2].tolist() == [0, 12 - 6, 12 - 3, 12]
    assert chosen[:, 3].tolist() == [0, 10, 11, 12]
    fewer = ERA(bases=4).choose(2, torch.tensor([0.0, 9.0], dtype=torch.float64))
    assert fewer.tolist() == [[0, 0], [1, 1]]


def test_a_step_uses_the_bases_chosen_for_the_error() -> None:
    """For an eps that is no polynomial, the foreseen value tells which bases it came from."""
    schedule = FlowSchedule()
    denoiser = EpsOf(schedule, lambda r: torch.cos(3 * r))
    times = times_of_r(*(2.0 - 0.1 * k for k in range(14)))[:, None]
    x = torch.zeros(1, 1, dtype=torch.float64)
    history = tuple(denoiser(x, each) for each in reversed(times[:12]))
    t, s = times[12], times[13]
    state = ERAState(history=history, foreseen=denoiser(x, t).eps + 0.1)
    _, following = ERA(variable="r", error_scale=0.1).step(denoiser, x, t, s, state)
    assert following.foreseen is not None
    # The newest is the 13th, at r = 0.8; the others are 3, 6 and 9 before it.
    knots = [0.8, 1.1, 1.4, 1.7]
    wanted = 0.0
    for j, own in enumerate(knots):
        basis = math.prod((0.7 - k) / (own - k) for i, k in enumerate(knots) if i != j)
        wanted += basis * math.cos(3 * own)
    assert following.foreseen.item() == pytest.approx(wanted, abs=1e-12)


def test_errors_of_eps_near_the_data_harm_it_less_than_adams(mixture_1d: GaussianMixture) -> None:
    """The paper's reason: a network's eps is worst near the data, where the last bases lie."""
    schedule = FlowSchedule()
    exact = MixtureDenoiser(mixture_1d, schedule)

    class Wrong:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            wave = 0.5 * torch.exp(-8 * t)[:, None] * torch.sin(900 * t)[:, None]
            return Prediction.from_eps(exact(x_t, t).eps + wave, x_t, t, schedule)

    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = torch.linspace(0.95, 0.02, 25, dtype=torch.float64)
    wanted = ExactFlowMap(mixture_1d, schedule)(x, times[0].expand(9), times[-1].expand(9))

    def error(scale: float) -> float:
        reached = sample(Wrong(), ERA(error_scale=scale), times, x).x
        return (reached - wanted).square().mean().sqrt().item()

    assert error(0.1) < 0.9 * error(math.inf)


def test_calls_and_ends(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
    path = sample(denoiser, ERA(), times, x)
    assert path.nfe == 40
    by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
    assert (path.x - exact).abs().mean() < 0.6 * by_ddim


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="bases"):
        ERA(bases=0)
    with pytest.raises(ValueError, match="error_scale"):
        ERA(error_scale=0)
    with pytest.raises(ValueError, match="variable"):
        ERA(variable="rho")  # pyright: ignore[reportArgumentType]  # that is the test
