"""Predictions: every parametrisation from every other, and none where it does not exist."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from core.prediction import Parametrisation, Prediction
from core.schedule import (
    CosineSchedule,
    FlowSchedule,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
    diffuse,
)

X0, EPS = Parametrisation.X0, Parametrisation.EPS
VELOCITY, V_PREDICTION = Parametrisation.VELOCITY, Parametrisation.V_PREDICTION


def truth(
    schedule: NoiseSchedule, t: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(t), 2, 3)
    x0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x0, eps, diffuse(schedule, x0, eps, t)


def give(kind: Parametrisation, value: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule):
    constructor = getattr(Prediction, f"from_{kind.value}")
    return constructor(value, x_t, t, schedule)


@pytest.mark.parametrize(
    ("given", "wanted"),
    list(itertools.product(Parametrisation, repeat=2)),
    ids=lambda kind: kind.value,
)
def test_each_from_each(
    schedule: NoiseSchedule,
    given: Parametrisation,
    wanted: Parametrisation,
    generator: torch.Generator,
) -> None:
    t = torch.tensor([0.13, 0.5, 0.77], dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    prediction = give(given, given.target(x0, eps, t, schedule), x_t, t, schedule)
    torch.testing.assert_close(
        getattr(prediction, wanted.value),
        wanted.target(x0, eps, t, schedule),
        rtol=1e-10,
        atol=1e-10,
    )


def test_targets_are_the_definitions(schedule: NoiseSchedule, generator: torch.Generator) -> None:
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x0, eps, _ = truth(schedule, t, generator)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    assert torch.equal(X0.target(x0, eps, t, schedule), x0)
    assert torch.equal(EPS.target(x0, eps, t, schedule), eps)
    torch.testing.assert_close(V_PREDICTION.target(x0, eps, t, schedule), alpha * eps - sigma * x0)
    # The velocity is the derivative of the path, here by central differences.
    step = 1e-6
    ahead, behind = (diffuse(schedule, x0, eps, t + shift) for shift in (step, -step))
    torch.testing.assert_close(
        VELOCITY.target(x0, eps, t, schedule), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6
    )


def test_velocity_of_the_flow_is_eps_minus_x0(generator: torch.Generator) -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x0, eps, _ = truth(FlowSchedule(), t, generator)
    assert torch.equal(VELOCITY.target(x0, eps, t, FlowSchedule()), eps - x0)


def test_score_both_ways(schedule: NoiseSchedule, generator: torch.Generator) -> None:
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    score = -eps / schedule.sigma(t)[:, None, None]
    read = Prediction.from_x0(x0, x_t, t, schedule).score
    torch.testing.assert_close(read, score, rtol=1e-8, atol=1e-8)
    made = Prediction.from_score(score, x_t, t, schedule)
    torch.testing.assert_close(made.eps, eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.x0, x0, rtol=1e-8, atol=1e-8)


# What exists at an end, by what was given; the rest must raise.
AT_DATA_END = {
    "x0": {"x0"},
    "eps": {"x0", "eps", "velocity", "v_prediction"},
    "velocity": {"x0", "eps", "velocity", "v_prediction"},
    "v_prediction": {"x0", "eps", "velocity", "v_prediction"},
}
AT_NOISE_END = {
    "x0": {"x0", "eps", "velocity", "v_prediction", "score"},
    "eps": {"eps", "score"},
    "velocity": {"x0", "eps", "velocity", "v_prediction", "score"},
    "v_prediction": {"x0", "eps", "velocity", "v_prediction", "score"},
}
READINGS = ("x0", "eps", "velocity", "v_prediction", "score")


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()], ids=["flow", "cosine"])
@pytest.mark.parametrize(("t_end", "exists"), [(0.0, AT_DATA_END), (1.0, AT_NOISE_END)])
@pytest.mark.parametrize("given", Parametrisation, ids=lambda kind: kind.value)
@pytest.mark.parametrize("wanted", READINGS)
def test_what_exists_at_the_ends(
    schedule: NoiseSchedule,
    t_end: float,
    exists: dict[str, set[str]],
    given: Parametrisation,
    wanted: str,
    generator: torch.Generator,
) -> None:
    # The first sample is inside: one impossible sample in a batch is enough to raise.
    t = torch.tensor([0.5, t_end], dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    prediction = give(given, given.target(x0, eps, t, schedule), x_t, t, schedule)
    if wanted not in exists[given.value]:
        with pytest.raises(ValueError, match=f"{wanted}|eps") as caught:
            getattr(prediction, wanted)
        assert f"t = {t_end:g}" in str(caught.value)
        return
    expected = (
        -eps / schedule.sigma(t)[:, None, None]
        if wanted == "score"
        else Parametrisation(wanted).target(x0, eps, t, schedule)
    )
    torch.testing.assert_close(getattr(prediction, wanted), expected, rtol=1e-12, atol=1e-12)


def test_velocity_does_not_exist_where_its_derivative_is_infinite(
    generator: torch.Generator,
) -> None:
    schedule = VPSchedule()
    t = torch.zeros(1, dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    for prediction in (
        Prediction.from_eps(eps, x_t, t, schedule),
        Prediction.from_v_prediction(eps, x_t, t, schedule),
    ):
        with pytest.raises(ValueError, match="velocity cannot be read"):
            _ = prediction.velocity
    with pytest.raises(ValueError, match="velocity does not exist"):
        VELOCITY.target(x0, eps, t, schedule)


def test_all_exist_at_both_ends_of_a_schedule_that_includes_neither(
    generator: torch.Generator,
) -> None:
    schedule = VESchedule(sigma_min=0.1, sigma_max=10.0)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    for given in Parametrisation:
        prediction = give(given, given.target(x0, eps, t, schedule), x_t, t, schedule)
        torch.testing.assert_close(prediction.x0, x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(prediction.eps, eps, rtol=1e-10, atol=1e-10)


def test_readings_are_differentiable_and_keep_the_dtype(generator: torch.Generator) -> None:
    schedule = CosineSchedule()
    t = torch.tensor([0.4, 0.7], dtype=torch.float64)
    x0, eps, x_t = truth(schedule, t, generator)
    value = eps.clone().requires_grad_()
    x_t = x_t.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value, x_t: Prediction.from_eps(value, x_t, t, schedule).velocity, (value, x_t)
    )
    single = Prediction.from_eps(eps.float(), x_t.detach().float(), t, schedule)
    assert single.x0.dtype == torch.float32
    torch.testing.assert_close(single.x0, x0.float(), rtol=1e-5, atol=1e-5)


def test_split_and_with_value(generator: torch.Generator) -> None:
    schedule = FlowSchedule()
    t = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    x0, _, x_t = truth(schedule, t, generator)
    prediction = Prediction.from_x0(x0, x_t, t, schedule)
    first, second = prediction.split([1, 2])
    torch.testing.assert_close(torch.cat([first.eps, second.eps]), prediction.eps)
    doubled = prediction.with_value(2 * x0)
    assert torch.equal(doubled.x0, 2 * x0)
    assert doubled.given is X0


def test_shapes_are_checked() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"x_t's shape \[2, 3\]"):
        Prediction.from_x0(torch.zeros(2, 4), x, torch.zeros(2), FlowSchedule())
    with pytest.raises(ValueError, match=r"t must have shape \[2\]"):
        Prediction.from_x0(x, x, torch.zeros(()), FlowSchedule())
