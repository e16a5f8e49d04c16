"""Schedules: what the equations say, at the ends too, and the inverse of the log-SNR."""

from __future__ import annotations

import math

import pytest
import torch

from core.schedule import (
    CosineSchedule,
    FlowSchedule,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
    diffuse,
    noise_like,
    per_sample,
)


def times(n: int = 997) -> torch.Tensor:
    """Strictly inside [0, 1]; none is a knot of the 1000-step schedules."""
    return (torch.arange(n, dtype=torch.float64) + 0.47) / n


def test_log_snr_is_of_alpha_and_sigma(schedule: NoiseSchedule) -> None:
    t = times()
    expected = 2 * torch.log(schedule.alpha(t) / schedule.sigma(t))
    torch.testing.assert_close(schedule.log_snr(t), expected, rtol=1e-9, atol=1e-9)


def test_log_snr_falls_strictly(schedule: NoiseSchedule) -> None:
    assert bool((schedule.log_snr(times()).diff() < 0).all())


def test_inverse_of_log_snr(schedule: NoiseSchedule) -> None:
    t = times()
    torch.testing.assert_close(
        schedule.t_of_log_snr(schedule.log_snr(t)), t, rtol=1e-10, atol=1e-12
    )
    single = schedule.t_of_log_snr(schedule.log_snr(t.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, t.float(), rtol=1e-4, atol=1e-5)


def test_inverse_of_log_snr_at_both_ends(schedule: NoiseSchedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        schedule.t_of_log_snr(schedule.log_snr(ends)), ends, rtol=0, atol=1e-14
    )


def test_derivatives(schedule: NoiseSchedule) -> None:
    t = times().requires_grad_()
    # The 0 t is for VE's alpha, which does not depend on t.
    (alpha_prime,) = torch.autograd.grad((schedule.alpha(t) + 0 * t).sum(), t)
    (sigma_prime,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(t), alpha_prime, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(schedule.sigma_prime(t), sigma_prime, rtol=1e-9, atol=1e-11)


def test_declared_ends_are_the_true_ones(schedule: NoiseSchedule) -> None:
    for dtype in (torch.float32, torch.float64):
        zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
        assert (schedule.sigma(zero).item() == 0) is schedule.reaches_data
        assert (schedule.alpha(one).item() == 0) is schedule.reaches_noise
        assert (schedule.log_snr(zero).item() == math.inf) is schedule.reaches_data
        assert (schedule.log_snr(one).item() == -math.inf) is schedule.reaches_noise


@pytest.mark.parametrize("name", ["alpha", "sigma", "alpha_prime", "sigma_prime", "log_snr"])
def test_shape_and_dtype_follow_t(schedule: NoiseSchedule, name: str) -> None:
    t = torch.full((2, 3), 0.3)
    value = getattr(schedule, name)(t)
    assert value.shape == t.shape
    assert value.dtype == torch.float32


@pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule()])
def test_variance_is_preserved(schedule: NoiseSchedule) -> None:
    t = times()
    total = schedule.alpha(t).square() + schedule.sigma(t).square()
    torch.testing.assert_close(total, torch.ones_like(t), rtol=1e-14, atol=1e-14)


def test_values_of_the_papers() -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    # Score SDE, Eq. 33: log alpha(1) = -(19.9 / 4 + 0.1 / 2).
    assert VPSchedule().alpha(one).item() == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert CosineSchedule().alpha(half).item() == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert FlowSchedule().log_snr(half).item() == 0
    # The geometric mean of sigma_min and sigma_max lies in the middle.
    assert VESchedule(sigma_min=0.01, sigma_max=1.0).sigma(half).item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VPSchedule(beta_min=1.0, beta_max=0.5), "beta_min"),
        (lambda: VPSchedule(beta_min=0.0), "beta_min"),
        (lambda: VESchedule(sigma_min=0.0), "sigma_min"),
        (lambda: VESchedule(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
    ],
)
def test_bad_parameters_are_named(make, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def test_diffuse_takes_each_samples_own_time(generator: torch.Generator) -> None:
    schedule = FlowSchedule()
    x0, eps = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.0, 0.25, 1.0])
    x_t = diffuse(schedule, x0, eps, t)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * eps[1])
    torch.testing.assert_close(x_t[2], eps[2])


def test_per_sample_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        per_sample(torch.ones(1), torch.ones(3, 2))
    assert per_sample(torch.ones(3, dtype=torch.float64), torch.ones(3, 2)).dtype == torch.float32


def test_noise_follows_the_generator_alone() -> None:
    x = torch.zeros(4, 3)
    first = noise_like(x, torch.Generator().manual_seed(7))
    torch.manual_seed(123)
    second = noise_like(x + 5, torch.Generator().manual_seed(7))
    assert torch.equal(first, second)
    assert not torch.equal(first, noise_like(x, torch.Generator().manual_seed(8)))
