"""Shortcut models against the exact mean velocity of a mixture's flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.field.shortcut import ShortcutModel
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.distillation.students import VelocityFlowMap
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import Network
from core.schedule import FlowSchedule
from core.training import train


def exact_network(mixture: GaussianMixture) -> Network:
    """The flow's mean velocity from s to t; the velocity where they meet."""
    flow = ExactFlowMap(mixture, FlowSchedule())
    teacher = MixtureDenoiser(mixture, FlowSchedule())

    def u(
        x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        assert s is not None
        still = s == t
        before = torch.where(still, 0.5 * t, s)
        mean = (flow(x, t, before) - x) / (before - t)[:, None]
        return torch.where(still[:, None], teacher(x, t).velocity, mean)

    return u


def test_two_halves_make_the_exact_whole(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    """By mean velocities exactly; by velocities with a first-order error."""
    method = ShortcutModel(mixture_ground(mixture_1d), steps=1)
    network = exact_network(mixture_1d)
    method.target_map = VelocityFlowMap(network, FlowSchedule())
    x = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    t = 0.5 + 0.5 * torch.rand(100, generator=generator, dtype=torch.float64)
    no = torch.zeros(100, dtype=torch.bool)
    whole = network(x, t, t - 0.4)
    halves = method.target(x, t, t - 0.2, t - 0.4, no, None)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-13)
    errors = []
    for h in (0.01, 0.005):
        steps = method.target(x, t, t - h, t - 2 * h, ~no, None)
        errors.append(float((steps - network(x, t, t - 2 * h)).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_the_batch_holds_every_step_size_and_velocities(mixture_1d: GaussianMixture) -> None:
    """Each step from a multiple of its size on the grid, its halves at the grid's middle."""
    ground = mixture_ground(two_mode_mixture())
    method = ShortcutModel(ground, levels=3, batch=400, steps=1)
    asked: list[tuple[Tensor, Tensor]] = []

    def record(
        x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        assert s is not None
        asked.append((t, s))
        return torch.zeros_like(x)

    method.target_map = VelocityFlowMap(record, ground.schedule)
    method.student.forward = record
    method.loss(torch.Generator().manual_seed(0))
    (first_t, first_s), (second_t, second_s), (t, s) = asked
    n = method.n_shortcuts
    assert n == 100
    assert torch.equal(t[n:], s[n:])
    cells = ((t - s)[:n] * 8 / (ground.t_max - ground.t_min)).round().long()
    assert set(cells.tolist()) == {2, 4, 8}
    start = ((ground.t_max - t[:n]) * 8 / (ground.t_max - ground.t_min)).round().long()
    assert bool((start % cells == 0).all())
    assert torch.equal(first_t, t[:n])
    small = cells == 2
    # The smallest steps' halves are taken with the velocity, the others' are jumps.
    assert torch.equal(first_s[small], first_t[small])
    assert torch.equal(second_s[small], second_t[small])
    assert torch.equal(first_s[~small], second_t[~small])
    assert torch.equal(second_s[~small], s[:n][~small])
    torch.testing.assert_close(second_t, (t[:n] + s[:n]) / 2)


def test_steps_of_any_size_land_near_the_exact_flow() -> None:
    mixture = two_mode_mixture()
    ground = mixture_ground(mixture)
    torch.manual_seed(0)
    method = ShortcutModel(ground, steps=1000)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = method.noise(2000, generator)
    end = torch.full((2000,), ground.t_min)
    exact = ExactFlowMap(mixture, ground.schedule)(z, torch.ones(2000), end)
    with torch.no_grad():
        errors = {
            nfe: float((method.sample(z, nfe, None, generator)[-1] - exact).square().mean().sqrt())
            for nfe in (1, 4)
        }
    # The exact velocity in Euler steps of those numbers: 0.92 and 0.24.
    assert errors[1] < 0.3
    assert errors[4] < 0.2


def test_it_takes_the_steps_that_it_learned() -> None:
    ground = mixture_ground(two_mode_mixture())
    method = ShortcutModel(ground, levels=3, steps=1)
    generator = torch.Generator().manual_seed(0)
    for nfe in (0, 3, 8):
        with pytest.raises(ValueError, match="This student takes"):
            method.sample(method.noise(2, generator), nfe, None, generator)
    with pytest.raises(ValueError, match="levels >= 1"):
        ShortcutModel(ground, levels=0, steps=1)
