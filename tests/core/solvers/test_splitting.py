"""Splitting: orders 1 and 2 against the guided flow, its trivial cases, its two substeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, VPSchedule
from core.solvers.ddim import DDIM
from core.solvers.dpm_solver import DPMSolver
from core.solvers.heun import Heun
from core.solvers.sampling import Solver, sample
from core.solvers.splitting import ClassifierFreeTerm, Splitting

SCALE = 2.5


def labelled(n: int = 9) -> Conditioning:
    """Class 1 for all, guided away from no class."""
    ones = torch.ones(n, dtype=torch.long)
    return Conditioning(labels=ones, uncond=Conditioning(labels=-ones))


def guided_flow(
    mixture: GaussianMixture, schedule: NoiseSchedule
) -> Callable[[Tensor, float, float], Tensor]:
    """dy/dr = guided eps in y = x / alpha, integrated to 1e-11 by another integrator."""
    guided = ClassifierFreeGuidance(MixtureDenoiser(mixture, schedule), SCALE)

    def flow(x: Tensor, start: float, end: float) -> Tensor:
        at = torch.tensor([start, end], dtype=torch.float64)
        alpha, r = schedule.alpha(at), schedule.sigma(at) / schedule.alpha(at)

        def rate(now: float, y: Any) -> Any:
            log_snr = -2 * torch.log(torch.full((len(x),), now, dtype=torch.float64))
            t = schedule.t_of_log_snr(log_snr)
            x_t = schedule.alpha(t)[:, None] * torch.from_numpy(y)[:, None]
            return guided(x_t, t, labelled(len(x))).eps[:, 0].numpy()

        y = (x[:, 0] / alpha[0]).numpy()
        solved = solve_ivp(rate, r.tolist(), y, "DOP853", rtol=1e-11, atol=1e-12)
        assert solved.success
        return alpha[1] * torch.from_numpy(solved.y[:, -1].copy())[:, None]

    return flow


class Uncond:
    """The mixture without classes: the base of the splitting."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.denoiser = MixtureDenoiser(mixture, schedule)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return self.denoiser(x_t, t)


def term(mixture: GaussianMixture, schedule: NoiseSchedule) -> ClassifierFreeTerm:
    return ClassifierFreeTerm(MixtureDenoiser(mixture, schedule), labelled(), SCALE)


@pytest.mark.parametrize(
    ("scheme", "substeps", "order"),
    [
        ("lie", DDIM(), 1),
        ("lie", DPMSolver(order=3), 1),
        ("strang", DDIM(), 1),
        ("strang", Heun(), 2),
        ("strang", DPMSolver(order=3), 2),
    ],
    ids=["lie, 1", "lie, 3", "strang, 1", "strang, 2", "strang, 3"],
)
def test_order(
    main_schedule: NoiseSchedule,
    mixture_1d: GaussianMixture,
    orders: Callable[..., list[float]],
    scheme: Literal["lie", "strang"],
    substeps: Solver[Any],
    order: int,
) -> None:
    """With substeps of third order, the order left is that of the splitting itself."""
    solver = Splitting(
        guidance=term(mixture_1d, main_schedule),
        scheme=scheme,
        base_solver=substeps,
        guidance_solver=substeps,
    )
    assert solver.order == order
    slopes = orders(
        solver,
        main_schedule,
        (32, 64, 128),
        denoiser=Uncond(mixture_1d, main_schedule),
        exact=guided_flow(mixture_1d, main_schedule),
    )
    assert slopes == pytest.approx([order] * 2, abs=0.2)


@pytest.mark.parametrize("scheme", ["lie", "strang"])
def test_without_guidance_it_is_the_base_solver(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, scheme: Literal["lie", "strang"]
) -> None:
    times = torch.linspace(0.9, 0.05, 8, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    solver = Splitting(guidance=lambda x_t, t: torch.zeros_like(x_t), scheme=scheme)
    path = sample(denoiser, solver, times, x)
    alone = sample(denoiser, Heun(), times, x)
    torch.testing.assert_close(path.x, alone.x, rtol=1e-12, atol=1e-12)
    assert path.nfe == alone.nfe


def test_a_guidance_that_is_constant_is_added_exactly() -> None:
    """It commutes with an eps that does not see x: both splittings are exact, to the data."""
    schedule = FlowSchedule()

    class Constant:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_eps(torch.full_like(x_t, 0.7), x_t, t, schedule)

    times = torch.tensor([0.8, 0.5, 0.0], dtype=torch.float64)
    x = torch.tensor([[0.4]], dtype=torch.float64)
    for scheme in ("lie", "strang"):
        solver = Splitting(guidance=lambda x_t, t: torch.full_like(x_t, -0.2), scheme=scheme)
        reached = sample(Constant(), solver, times, x).x
        # y(0) = y(r) - 0.5 r with r = 4.
        assert reached.item() == pytest.approx(0.4 / 0.2 - 0.5 * 4, abs=1e-12)


def test_lie_is_ddim_and_then_a_guidance_step(mixture_1d: GaussianMixture) -> None:
    """Written out in y and r, where each is a plain Euler step."""
    schedule = VPSchedule()
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    times = torch.tensor([0.5, 0.4], dtype=torch.float64)
    t = times[:1].expand(9)
    (a_t, a_s), (s_t, s_s) = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    step = s_s / a_s - s_t / a_t
    guidance = term(mixture_1d, schedule)
    base = Uncond(mixture_1d, schedule)
    y = x / a_t + step * base(x, t).eps
    y = y + step * guidance(a_t * y, t)
    solver = Splitting(guidance=guidance, scheme="lie", base_solver=DDIM(), guidance_solver=DDIM())
    torch.testing.assert_close(sample(base, solver, times, x).x, a_s * y, rtol=1e-12, atol=1e-12)


def test_the_classifier_free_term_is_what_guidance_adds(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    t = torch.full((9,), 0.4, dtype=torch.float64)
    whole = ClassifierFreeGuidance(denoiser, SCALE)(x, t, labelled()).eps
    torch.testing.assert_close(denoiser(x, t).eps + term(mixture_1d, schedule)(x, t), whole)


def test_misuse_is_refused(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    guidance = term(mixture_1d, schedule)
    with pytest.raises(ValueError, match="scheme"):
        Splitting(guidance=guidance, scheme="yoshida")  # pyright: ignore[reportArgumentType]  # that is the test
    from_noise = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x = torch.zeros(9, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha is 0"):
        sample(Uncond(mixture_1d, schedule), Splitting(guidance=guidance), from_noise, x)
    plain = ClassifierFreeTerm(guidance.denoiser, Conditioning(labels=torch.ones(9).long()), SCALE)
    with pytest.raises(ValueError, match="uncond"):
        plain(x, from_noise[1:].expand(9))
