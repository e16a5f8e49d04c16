"""DMD2: the critic's part of the gradient, the two time scales, and what both give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.generator.dmd import DMD
from core.distillation.generator.dmd2 import DMD2
from core.distillation.method import Ground
from core.training import train


class SlopedCritic(nn.Module):
    """The logit is slope x."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        return self.slope * x


def gradient(method: DMD, student: nn.Module) -> Tensor:
    """By the student's shift, for one batch."""
    method.student = student
    loss = method.loss(torch.Generator().manual_seed(2))
    return torch.autograd.grad(loss, [student.get_parameter("shift")])[0]


def test_the_gradient_is_dmds_and_the_critics(ground: Ground, line_generator: nn.Module) -> None:
    """A critic that prefers the right adds a pull to the right of known size."""
    student = line_generator.float()
    plain = DMD(ground, regression_weight=0.0, latent_dimension=1, batch=64, steps=1)
    method = DMD2(ground, gan_weight=0.5, latent_dimension=1, batch=64, steps=1)
    method.fake = plain.fake
    method.critic = SlopedCritic(0.0)
    matching = gradient(plain, student)
    torch.testing.assert_close(gradient(method, student), matching)
    # softplus(-slope x_t) has the slope -slope sigmoid(-slope x_t) alpha by x: -slope alpha / 2
    # for a small slope, and alpha's mean over t is one half.
    method.critic = SlopedCritic(1e-3)
    pull = gradient(method, student) - matching
    assert pull.item() == pytest.approx(-0.5 * 1e-3 * 0.5 * 0.5, rel=0.15)


def test_the_fake_score_and_the_critic_take_more_steps(ground: Ground) -> None:
    method = DMD2(ground, fake_updates=5, batch=4, steps=3)
    calls = {"fake": 0, "critic": 0, "student": 0}
    for name, module in method.modules().items():

        def count(_module: nn.Module, _inputs: object, *, name: str = name) -> None:
            calls[name] += 1

        module.register_forward_pre_hook(count)
    train(method)
    # One call in each own update; the student's loss asks each once, the others' the student.
    assert calls == {"fake": 15 + 3, "critic": 2 * 15 + 3, "student": 15 + 15 + 3}
    assert set(method.modules()) == {"student", "fake", "critic"}
    players = method.stages()[0].players
    assert [(name, player.updates) for name, player in players.items()] == [
        ("critic", 5),
        ("fake", 5),
        ("student", 1),
    ]


def test_a_critic_without_weight_is_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="gan_weight"):
        DMD2(ground, gan_weight=0.0, steps=1)


def test_both_modes_keep_their_weights(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = DMD2(ground, fake_updates=3, steps=300)
    train(method)
    with torch.no_grad():
        x = method.generate(method.noise(4000, torch.Generator().manual_seed(5)))
    # Untrained, and with SDS, the left mode has nothing and the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.1
    assert wasserstein(x) < 0.25
