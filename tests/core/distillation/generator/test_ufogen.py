"""UFOGen: noised laws are equal only where the clean ones are, and the game knows it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.generator.critic import discriminator_loss, generator_loss
from core.distillation.generator.ufogen import UFOGen
from core.distillation.method import Ground
from core.mixture import GaussianMixture
from core.schedule import FlowSchedule
from core.training import train

POINTS = torch.tensor([[-1.2], [0.8]], dtype=torch.float64)


def two_points(left: float) -> GaussianMixture:
    return GaussianMixture(
        weights=torch.tensor([left, 1 - left], dtype=torch.float64),
        means=POINTS,
        covariances=torch.zeros(2, 1, dtype=torch.float64),
    )


class BestCritic(nn.Module):
    """log p_t / q_t, of the noised laws."""

    def __init__(self, real: GaussianMixture, fake: GaussianMixture) -> None:
        super().__init__()
        self.laws = real, fake

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        p, q = (law.noised(1 - t, t).log_density(x) for law in self.laws)
        return (p - q)[:, None]


def equally_weighted(left_of_ten: int, n: int = 2000) -> tuple[Tensor, Tensor]:
    """x0 [10 n, 1] and eps: ten draws of two points, each with the n quantiles of the noise."""
    index = torch.tensor([0] * left_of_ten + [1] * (10 - left_of_ten)).repeat_interleave(n)
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return POINTS[index], torch.special.ndtri(ranks).repeat(10)[:, None]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_noised_laws_are_equal_only_where_the_clean_ones_are(
    ground: Ground, index: int
) -> None:
    """Against the best critic the game is at chance, and flat, for p = q alone."""
    method = UFOGen(ground, levels=4, steps=1)
    losses, slopes = {}, {}
    for fake_left in (3, 5):
        method.critic = BestCritic(two_points(0.3), two_points(fake_left / 10))
        real, eps = equally_weighted(3)
        at = torch.full((len(real),), index)
        fake = equally_weighted(fake_left)[0].requires_grad_(True)
        logits = method.logits(fake, at, eps)
        losses[fake_left] = discriminator_loss(method.logits(real, at, eps), logits).item()
        (slopes[fake_left],) = torch.autograd.grad(generator_loss(logits), [fake])
    assert losses[3] == pytest.approx(2 * math.log(2), abs=1e-12)
    assert float(slopes[3].abs().max()) < 1e-12
    # 2 log 2 less twice the divergence, which noise makes small but never zero.
    t = ground.grid(4)[index + 1].double()
    assert losses[5] == pytest.approx(2 * math.log(2) - 2 * jsd(t), abs=1e-5)
    assert jsd(t) > 1e-4
    assert float(slopes[5].abs().max()) * len(slopes[5]) > 1e-2


def jsd(t: Tensor) -> float:
    """The Jensen-Shannon divergence of the two noised laws, by quadrature on a line."""
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    alpha, sigma = (value.expand(len(x)) for value in (1 - t, t))
    p, q = (two_points(left).noised(alpha, sigma).log_density(x).exp() for left in (0.3, 0.5))
    terms = (torch.xlogy(p, p) + torch.xlogy(q, q)) / 2 - torch.xlogy((p + q) / 2, (p + q) / 2)
    return float(terms.sum() * (16 / 20_000))


def test_the_reconstruction_is_between_noised_samples(ground: Ground) -> None:
    """|x_{t-1} - x^_{t-1}|^2 under a common noise; nothing but it where the critic is blind."""
    method = UFOGen(ground, reconstruction_weight=2.0, batch=32, steps=1)
    method.critic = BestCritic(two_points(0.3), two_points(0.3))
    loss = method.loss(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    data = ground.data(32, generator)
    x_t, index = method.draw_start(data, generator)
    below = ground.grid(2)[index + 1]
    noised = [
        FlowSchedule().alpha(below)[:, None] * x for x in (data.x0, method.generate(x_t, index))
    ]
    expected = 2.0 * (noised[0] - noised[1]).square().sum(1).mean() + math.log(2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="reconstruction_weight"):
        UFOGen(ground, reconstruction_weight=-1.0, steps=1)


def test_one_step_gives_both_modes(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = UFOGen(ground, steps=700)
    train(method)
    generator = torch.Generator().manual_seed(5)
    x = method.noise(4000, generator)
    with torch.no_grad():
        for nfe in (1, 2):
            made = method.sample(x, nfe, None, generator)[-1]
            # Untrained, the left mode has nothing and the distance is above 0.8.
            assert abs(left_mass(made) - 0.3) < 0.12
            assert wasserstein(made) < 0.3
