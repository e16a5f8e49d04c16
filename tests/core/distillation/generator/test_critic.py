"""The adversarial losses where all is known: laws on two points, and linear critics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from core.distillation.generator.critic import (
    critic_logits,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from core.distillation.method import Ground

# p gives its points 3 and 7 of 10 draws, q 6 and 4: the losses' means are exact expectations.
REAL = torch.tensor([0] * 3 + [1] * 7)
FAKE = torch.tensor([0] * 6 + [1] * 4)
LOG_RATIO = torch.tensor([math.log(3 / 6), math.log(7 / 4)], dtype=torch.float64)


def loss_of(table: Tensor) -> Tensor:
    return discriminator_loss(table[REAL], table[FAKE])


def test_the_best_logit_is_the_log_density_ratio(generator: torch.Generator) -> None:
    table = LOG_RATIO.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(table), [table])
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-16)
    for _ in range(20):
        other = LOG_RATIO + torch.randn(2, generator=generator, dtype=torch.float64)
        assert loss_of(other) > loss_of(table)


def test_there_the_loss_is_the_jensen_shannon_divergence() -> None:
    p, q = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    p, q = p.double(), q.double()
    middle = (p + q) / 2
    jsd = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    expected = 2 * math.log(2) - 2 * jsd.item()
    # The weights are float32's 0.3 and 0.7.
    assert loss_of(LOG_RATIO).item() == pytest.approx(expected, abs=1e-7)


def test_the_generators_loss_is_steep_where_the_critic_is_sure() -> None:
    """Its slope by the logit is -sigmoid(-logit): -1 at a sample that is surely fake."""
    logits = torch.tensor([-30.0, 0.0, 30.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(3 * generator_loss(logits), [logits])
    expected = torch.tensor([-1.0, -0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


def test_r1_of_a_quadratic_critic(generator: torch.Generator) -> None:
    """logit = c |x|^2 / 2 has E |c x|^2, and its derivative by c is 2 c E |x|^2."""
    x = torch.randn(8, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(c * x.square().flatten(1).sum(1) / 2, x)
    mean_square = x.detach().square().flatten(1).sum(1).mean()
    torch.testing.assert_close(penalty.detach(), 0.49 * mean_square)
    (slope,) = torch.autograd.grad(penalty, [c])
    torch.testing.assert_close(slope, 1.4 * mean_square)


def test_a_critics_logit_is_one_number_a_sample(ground: Ground) -> None:
    x, t, start = torch.zeros(4, 1), torch.full((4,), 0.5), torch.linspace(0.2, 1, 4)
    assert critic_logits(ground.make_network(times=1), x, t).shape == (4,)
    aware = critic_logits(ground.make_network(times=2), x, t, None, start)
    assert len(aware.unique()) == 4
