"""Reflow against the exact flow: the cost's identity, a straight second round, and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.reflow import Reflow, straightness, transport_cost
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.exact_flow import ExactFlowMap
from core.metrics import wasserstein_1d
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, VPSchedule
from core.training import train


def normal_nodes(step: float) -> tuple[Tensor, Tensor]:
    nodes = torch.arange(-9, 9 + step / 2, step, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2)
    return nodes, weights / weights.sum()


def test_the_cost_falls_by_straightness_and_crossing(mixture_1d: GaussianMixture) -> None:
    """E|X1-X0|^2 - E|Z1-Z0|^2 = S(Z) + int E Var(X1-X0 | X_t) dt, each side on its own."""
    # Fine, for the flow is steep where the mixture is thin: it stretches there ninefold.
    nodes, weights = normal_nodes(0.005)
    levels, level_weights = np.polynomial.legendre.leggauss(48)
    times = torch.from_numpy((levels + 1) / 2)
    velocity = MixtureDenoiser(mixture_1d, FlowSchedule())
    flow = ExactFlowMap(mixture_1d, FlowSchedule())
    noise = nodes[:, None]
    ones = torch.ones(len(nodes), dtype=torch.float64)
    chord = noise - flow(noise, ones, 0 * ones)
    second = mixture_1d.weights @ (mixture_1d.means.square() + mixture_1d.covariances)[:, 0]
    independent = 1 + second
    monotone = (weights * chord[:, 0].square()).sum()
    bend = crossing = torch.zeros((), dtype=torch.float64)
    for t, weight in zip(times, torch.from_numpy(level_weights / 2), strict=True):
        z_t = flow(noise, ones, t * ones)
        off = velocity(z_t, t * ones).velocity - chord
        bend = bend + weight * (weights * off[:, 0].square()).sum()
        # E |v(X_t, t)|^2 by the marginal's own components, not along the flow.
        of_velocity = torch.zeros((), dtype=torch.float64)
        for share, mean, variance in zip(
            mixture_1d.weights, mixture_1d.means, mixture_1d.covariances, strict=True
        ):
            x_t = (1 - t) * mean + ((1 - t) ** 2 * variance + t**2).sqrt() * noise
            v = velocity(x_t, t * ones).velocity[:, 0]
            of_velocity = of_velocity + share * (weights * v.square()).sum()
        crossing = crossing + weight * (independent - of_velocity)
    torch.testing.assert_close(independent - monotone, bend + crossing, rtol=1e-6, atol=0)
    assert bend > 0.01
    assert crossing > 0.1
    # The library's own measure, by differences along 64 steps.
    drawn = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    drawn = drawn.sort(0).values[10::20]
    grid = torch.linspace(1, 0, 65, dtype=torch.float64)
    many = torch.ones(len(drawn), dtype=torch.float64)
    states = [flow(drawn, many, s * many) for s in grid]
    assert straightness(grid, states).item() == pytest.approx(bend.item(), rel=0.03)
    assert transport_cost(drawn, states[-1]).item() == pytest.approx(monotone.item(), rel=0.03)


def test_straightness_of_a_bent_path() -> None:
    """Velocities 1 and 3 for half of the time each: both are 1 from the mean."""
    times = torch.tensor([0.0, 0.5, 1.0])
    states = [torch.zeros(4, 1), torch.full((4, 1), 0.5), torch.full((4, 1), 2.0)]
    assert straightness(times, states).item() == pytest.approx(1.0)
    assert straightness(times, [states[0], states[2] / 2, states[2]]).item() == 0


def test_the_second_round_is_straight_in_one_dimension(mixture_1d: GaussianMixture) -> None:
    """On monotone pairs lines do not cross: the loss of the right velocity is 0, to rounding."""
    method = Reflow(mixture_ground(mixture_1d), steps=3)
    flow = ExactFlowMap(mixture_1d, FlowSchedule())

    def end_of(noise: Tensor) -> Tensor:
        ones = torch.ones(len(noise), dtype=torch.float64)
        return flow(noise, ones, 0 * ones)

    class Straight(nn.Module):
        """The line through x at t: its noise u, by bisection of t u + (1 - t) end(u) = x."""

        def forward(
            self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
        ) -> Tensor:
            low, high = torch.full_like(x, -10), torch.full_like(x, 10)
            middle = (low + high) / 2
            for _ in range(56):
                beyond = t[:, None] * middle + (1 - t[:, None]) * end_of(middle) > x
                low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
                middle = (low + high) / 2
            return middle - end_of(middle)

    class Marginal(nn.Module):
        def forward(
            self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
        ) -> Tensor:
            return MixtureDenoiser(mixture_1d, FlowSchedule())(x, t).velocity

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    t = torch.rand(64, generator=generator, dtype=torch.float64)
    assert method.flow_loss(Straight(), noise, end_of(noise), t, None).item() < 1e-20
    x0, _ = mixture_1d.sample(64, generator)
    assert method.flow_loss(Marginal(), noise, x0, t, None).item() > 0.1


def test_two_rounds_and_one_step() -> None:
    mixture = two_mode_mixture()
    ground = mixture_ground(mixture)
    torch.manual_seed(0)
    method = Reflow(ground, rounds=2, pairs=4096, pair_steps=12, steps=1200)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = ground.noise(2000, generator)
    exact_flow = ExactFlowMap(mixture, FlowSchedule())
    ones = torch.ones(2000)
    exact = exact_flow(z, ones, 0 * ones)
    x0 = ground.data(2000, generator).x0
    with torch.no_grad():
        one = method.sample(z, 1, None, generator)[-1]
        path = method.sample(z, 16, None, generator)
    # The noise is 0.47 away; Euler's one step of the teacher, the data's mean, 0.96.
    assert float((one - exact).square().mean().sqrt()) < 0.3
    assert float(wasserstein_1d(one[:, 0], x0[:, 0]).sqrt()) < 0.2
    assert float(wasserstein_1d(path[-1][:, 0], x0[:, 0]).sqrt()) < 0.2
    # The last flow is straighter than the teacher's, and no dearer than independent pairs.
    grid = torch.linspace(1, 0, 17)
    of_teacher = straightness(grid, [exact_flow(z, ones, s * ones) for s in grid])
    assert float(straightness(grid, path)) < 0.3 * float(of_teacher)
    assert float(transport_cost(z, path[-1])) < float(transport_cost(z, x0))


def test_a_resumed_run_finds_its_pairs(tmp_path: Path) -> None:
    def make() -> Reflow:
        torch.manual_seed(0)
        ground = mixture_ground(two_mode_mixture(), VPSchedule(), with_labels=True, width=8)
        return Reflow(ground, rounds=2, pairs=32, pair_steps=2, batch=8, steps=9)

    whole, first, second = make(), make(), make()
    train(whole)
    train(first, out=tmp_path, progress=lambda _, h: h.step == 5)
    history = train(second, out=tmp_path, seed=7)
    assert [name for name, _ in history.stages] == ["round 1", "round 2", "distil"]
    for a, b in zip(whole.modules().values(), second.modules().values(), strict=True):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key])
    assert set(second.pool.labels.tolist()) == {0, 1}


def test_settings_that_cannot_work_are_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    with pytest.raises(ValueError, match="rounds and pair_steps"):
        Reflow(ground, rounds=0, steps=9)
    with pytest.raises(ValueError, match="3 stages need at least as many steps"):
        Reflow(ground, rounds=2, steps=2)
    with pytest.raises(ValueError, match="A pool needs size"):
        Reflow(ground, pairs=0, steps=9)
