"""The policies of times: their windows, and DreamTime's against quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from core.timesteps import Pace, TimestepWindow, WeightedNonIncreasing


def test_a_window_is_uniform_between_its_bounds() -> None:
    window = TimestepWindow(low=(0.4, 0.1), high=(0.98, 0.48))
    for progress in (0.0, 0.3, 1.0):
        low, high = window.bounds(progress)
        assert low == pytest.approx(0.4 - 0.3 * progress)
        assert high == pytest.approx(0.98 - 0.5 * progress)
        t = window.sample(progress, 4000, torch.Generator().manual_seed(0))
        again = torch.rand(4000, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(t, low + (high - low) * again)
        ordered = ((t - low) / (high - low)).sort().values
        exact = (torch.arange(4000) + 0.5) / 4000
        assert (ordered - exact).abs().max() < 1.95 / math.sqrt(4000)


def test_the_paces() -> None:
    for pace, moved in ((Pace.CONSTANT, 0.0), (Pace.LINEAR, 0.25), (Pace.SQRT, 0.5)):
        window = TimestepWindow(low=(0.4, 0.2), high=(0.9, 0.5), pace=pace)
        assert window.bounds(0.25) == pytest.approx((0.4 - 0.2 * moved, 0.9 - 0.4 * moved))
        assert window.bounds(0.0) == (0.4, 0.9)
    # HiFA: one time, t_max - (t_max - t_min) sqrt(progress).
    hifa = TimestepWindow(low=(0.98, 0.02), high=(0.98, 0.02), pace=Pace.SQRT)
    t = hifa.sample(0.49, 3, torch.Generator())
    torch.testing.assert_close(t, torch.full((3,), 0.98 - 0.96 * 0.7))


def test_a_window_can_be_at_its_end_early_or_jump_there() -> None:
    """MVDream anneals over 8000 of 10,000 steps; ProlificDreamer jumps at 5000 of 25,000."""
    mvdream = TimestepWindow(low=(0.98, 0.02), high=(0.98, 0.5), end=0.8)
    assert mvdream.bounds(0.4) == pytest.approx((0.5, 0.74))
    assert mvdream.bounds(0.8) == mvdream.bounds(1.0) == pytest.approx((0.02, 0.5))
    jump = TimestepWindow(low=(0.02, 0.02), high=(0.98, 0.5), pace=Pace.JUMP, end=0.2)
    assert jump.bounds(0.199) == (0.02, 0.98)
    assert jump.bounds(0.2) == pytest.approx((0.02, 0.5))
    for end in (0.0, 1.5):
        with pytest.raises(ValueError, match="end"):
            TimestepWindow(low=(0.1, 0.1), high=(0.5, 0.5), end=end)


@pytest.mark.parametrize("policy", [WeightedNonIncreasing(), WeightedNonIncreasing(m1=0.6, s1=0.1)])
def test_dreamtime_spends_its_time_by_weight(policy: WeightedNonIncreasing) -> None:
    corners = [policy.m2, policy.m1]
    whole = integrate.quad(policy.weight, policy.t_min, policy.t_max, points=corners)[0]
    assert policy.time_at(0.0) == pytest.approx(policy.t_max, abs=1e-9)
    assert policy.time_at(1.0) == pytest.approx(policy.t_min, abs=1e-9)
    for progress in (0.05, 0.3, 0.6, 0.9, 0.99):
        t = policy.time_at(progress)
        inside = [corner for corner in corners if corner > t]
        above = integrate.quad(policy.weight, t, policy.t_max, points=inside or None)[0]
        assert above == pytest.approx(progress * whole, abs=1e-8)
    times = [policy.time_at(step / 200) for step in range(201)]
    assert all(a >= b for a, b in itertools.pairwise(times))


def test_dreamtime_is_the_published_search_over_steps() -> None:
    """t_i = argmin over t' of |sum from t' to T of p(t) - i/N| on 1000 discrete times."""
    policy = WeightedNonIncreasing(t_min=0.0, t_max=1.0)
    p = np.array([policy.weight((t + 0.5) / 1000) for t in range(1000)])
    tails = np.cumsum((p / p.sum())[::-1])[::-1]
    for i in range(1, 500, 7):
        found = int(np.argmin(np.abs(tails - i / 500))) / 1000
        assert policy.time_at(i / 500) == pytest.approx(found, abs=1.5e-3)


def test_all_samples_of_a_step_share_dreamtimes_time() -> None:
    policy = WeightedNonIncreasing()
    t = policy.sample(0.4, 3, torch.Generator())
    torch.testing.assert_close(t, torch.full((3,), policy.time_at(0.4)))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="low <= high"):
        TimestepWindow(low=(0.5, 0.5), high=(0.9, 0.3))
    with pytest.raises(ValueError, match="t_min < t_max"):
        WeightedNonIncreasing(t_min=0.9, t_max=0.2)
    with pytest.raises(ValueError, match="m2 <= m1"):
        WeightedNonIncreasing(m1=0.2, m2=0.5)
