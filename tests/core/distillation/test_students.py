"""What students are by construction, whatever their network says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.students import (
    ConsistencyFunction,
    DDIMFlowMap,
    NetworkDenoiser,
    VelocityFlowMap,
    sample_by_jumps,
    sample_by_noising,
    sample_by_solver,
)
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule, VPSchedule
from core.solvers.ddim import DDIM

SCHEDULES = [FlowSchedule(), CosineSchedule(), VPSchedule(), VESchedule(sigma_max=10.0)]


def raw(x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None) -> Tensor:
    """Some smooth function of everything."""
    later = t if s is None else s
    return torch.sin(3 * x) + t[:, None] - 0.5 * later[:, None]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def full(value: float) -> Tensor:
    return torch.full((5,), value, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_flow_maps_stay_where_they_are_in_no_time(schedule: NoiseSchedule, x: Tensor) -> None:
    t = torch.tensor([0.1, 0.3, 0.5, 0.9, 0.99], dtype=torch.float64)
    for flow_map in (DDIMFlowMap(raw, schedule), VelocityFlowMap(raw, schedule)):
        torch.testing.assert_close(flow_map(x, t, t), x, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_consistency_function_is_exact_at_its_boundary(
    schedule: NoiseSchedule, x: Tensor
) -> None:
    f = ConsistencyFunction(raw, schedule, t_min=0.02)
    torch.testing.assert_close(f(x, full(0.02)), x, atol=1e-14, rtol=1e-14)
    assert not torch.allclose(f(x, full(0.5)), x, atol=0.1)


def test_a_consistency_function_exists_where_alpha_is_zero(x: Tensor) -> None:
    f = ConsistencyFunction(raw, FlowSchedule(), t_min=0.02, data_std=0.7)
    torch.testing.assert_close(f(x, full(1.0)), 0.98 * 0.7 * raw(x, full(1.0)))


def test_a_consistency_function_is_edm_s_on_variance_exploding_data(x: Tensor) -> None:
    """arXiv 2303.01469, Appendix C, written in sigma."""
    schedule = VESchedule(sigma_min=0.002, sigma_max=80.0)
    f = ConsistencyFunction(raw, schedule, t_min=0.0)
    t = full(0.6)
    sigma, d, low = schedule.sigma(t)[:, None], 0.5, 0.002
    skip = d**2 / ((sigma - low) ** 2 + d**2)
    out = d * (sigma - low) / (d**2 + sigma**2).sqrt()
    torch.testing.assert_close(f(x, t), skip * x + out * raw(x, t))


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=lambda s: type(s).__name__)
def test_ddim_flow_maps_step_by_ctm_s_rule(schedule: NoiseSchedule, x: Tensor) -> None:
    t, s = full(0.8), full(0.4)
    g = raw(x, t, s)
    ratio = (schedule.sigma(s) / schedule.sigma(t))[:, None]
    alpha_t, alpha_s = schedule.alpha(t)[:, None], schedule.alpha(s)[:, None]
    expected = alpha_s * g + ratio * (x - alpha_t * g)
    torch.testing.assert_close(DDIMFlowMap(raw, schedule)(x, t, s), expected)


def test_samplers_count_their_states(x: Tensor) -> None:
    times = torch.tensor([1.0, 0.6, 0.3, 0.01])
    jumps = sample_by_jumps(VelocityFlowMap(raw, FlowSchedule()), x, times)
    assert len(jumps) == 4
    f = ConsistencyFunction(raw, FlowSchedule(), t_min=0.01)
    generator = torch.Generator().manual_seed(1)
    noised = sample_by_noising(f, x, times, None, generator)
    assert len(noised) == 4
    # The last state is the function's own answer to the state before it, without new noise.
    torch.testing.assert_close(noised[-1], f(noised[-2], full(0.3)))
    runs = sample_by_solver(NetworkDenoiser(raw, FlowSchedule()), DDIM(), x, times)
    assert len(runs) == 4
