"""CTM: the semigroup, the denoiser in the limit, zero loss at the exact flow, and a short run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.field.ctm import CTM
from core.distillation.field.progressive import x0_of_step
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.distillation.students import DDIMFlowMap
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import Network
from core.schedule import FlowSchedule
from core.solvers.heun import Heun
from core.solvers.sampling import Solver, sample
from core.training import train


def exact_network(mixture: GaussianMixture, factor: float = 1.0) -> Network:
    """g of the exact flow: the x0 with which one DDIM step does the whole jump; D at s = t."""
    schedule = FlowSchedule()
    flow, teacher = ExactFlowMap(mixture, schedule), MixtureDenoiser(mixture, schedule)

    def g(
        x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        assert s is not None
        still = s == t
        before = torch.where(still, 0.5 * t, s)
        jump = x0_of_step(x, t, flow(x, t, before), before, schedule)
        return factor * torch.where(still[:, None], teacher(x, t).x0, jump)

    return g


def test_two_jumps_are_one(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    flow_map = DDIMFlowMap(exact_network(mixture_1d), FlowSchedule())
    x = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    t, u, s = (torch.full((100,), v, dtype=torch.float64) for v in (0.9, 0.5, 0.2))
    # Rounding: 5.6e-16 was seen of x up to 3, where a float64's last bit is worth 4.4e-16.
    torch.testing.assert_close(
        flow_map(flow_map(x, t, u), u, s), flow_map(x, t, s), rtol=0, atol=1e-15
    )
    off = DDIMFlowMap(exact_network(mixture_1d, 1.1), FlowSchedule())
    assert float((off(off(x, t, u), u, s) - off(x, t, s)).abs().max()) > 0.01


def test_the_jumps_x0_nears_the_denoisers(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    """With first order in t - s."""
    flow_map = DDIMFlowMap(exact_network(mixture_1d), FlowSchedule())
    x = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    t = torch.full((100,), 0.6, dtype=torch.float64)
    wanted = MixtureDenoiser(mixture_1d, FlowSchedule())(x, t).x0
    errors = [float((flow_map.clean(x, t, t - h) - wanted).norm()) for h in (0.02, 0.01, 0.005)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


def test_the_trajectory_loss_is_zero_at_the_exact_flow(
    mixture_1d: GaussianMixture,
    double: Callable[[Ground], Ground],
    exact_solver: Callable[[ExactFlowMap], Solver],
) -> None:
    ground = double(mixture_ground(mixture_1d))
    flow = ExactFlowMap(mixture_1d, ground.schedule)
    losses = []
    for solver, factor in ((exact_solver(flow), 1.0), (exact_solver(flow), 1.05), (Heun(), 1.0)):
        method = CTM(ground, solver=solver, intervals=10, steps=1)
        method.flow_map = DDIMFlowMap(exact_network(mixture_1d, factor), ground.schedule)
        method.target_map = DDIMFlowMap(exact_network(mixture_1d), ground.schedule)
        losses.append(method.trajectory_loss(torch.Generator().manual_seed(0)).item())
    assert losses[0] < 1e-20
    assert losses[1] > 1e-4
    # The solver's error is what the student inherits.
    assert 1e-8 < losses[2] < 1e-2


def test_the_denoising_loss_is_least_at_the_denoiser(
    mixture_1d: GaussianMixture, double: Callable[[Ground], Ground]
) -> None:
    """There it is the mean posterior variance."""
    ground = double(replace(mixture_ground(mixture_1d), t_min=0.05))
    losses = []
    for factor in (0.9, 1.0, 1.1):
        method = CTM(ground, batch=50_000, steps=1)
        method.flow_map = DDIMFlowMap(exact_network(mixture_1d, factor), ground.schedule)
        losses.append(method.denoising_loss(torch.Generator().manual_seed(0)).item())
    assert losses[1] < min(losses[0], losses[2])
    generator = torch.Generator().manual_seed(7)
    t = ground.times(50_000, generator)
    x0 = ground.data(50_000, generator).x0
    eps = torch.randn(50_000, 1, generator=generator, dtype=torch.float64)
    noised = mixture_1d.noised(1 - t, t)
    variance = noised.x0_covariance((1 - t)[:, None] * x0 + t[:, None] * eps).mean().item()
    assert losses[1] == pytest.approx(variance, rel=0.02)


def test_every_sample_is_solved_over_its_own_span(
    mixture_1d: GaussianMixture, double: Callable[[Ground], Ground], generator: torch.Generator
) -> None:
    ground = double(mixture_ground(mixture_1d))
    method = CTM(ground, intervals=8, steps=1)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    first, last = torch.tensor([0, 2, 5, 7]), torch.tensor([3, 3, 5, 8])
    solved = method.solve(x, first, last, None)
    grid = ground.grid(8)
    for i, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        alone = x[[i]]
        if stop > start:
            alone = sample(ground.teacher, Heun(), grid[start : stop + 1], x[[i]]).x
        torch.testing.assert_close(solved[[i]], alone, rtol=0, atol=1e-13)


def test_jumps_land_near_the_exact_flow() -> None:
    mixture = two_mode_mixture()
    ground = mixture_ground(mixture)
    torch.manual_seed(0)
    method = CTM(ground, max_solver_steps=2, steps=500)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = method.noise(2000, generator)
    end = torch.full((2000,), ground.t_min)
    exact = ExactFlowMap(mixture, ground.schedule)(z, torch.ones(2000), end)
    with torch.no_grad():
        errors = [
            float((method.sample(z, nfe, None, generator)[-1] - exact).square().mean().sqrt())
            for nfe in (1, 4)
        ]
    # Untrained 0.97; the mean of all samples 0.92; four steps of the teacher 0.24.
    assert errors[0] < 0.5
    assert errors[1] < 0.24


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_solver_steps >= 1"):
        CTM(mixture_ground(two_mode_mixture()), max_solver_steps=0, steps=1)
