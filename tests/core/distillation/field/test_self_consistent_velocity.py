"""Self-consistent velocities: the residual is 0 at the true one, and training finds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.self_consistent_velocity import SelfConsistentVelocity
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, NoiseSchedule, VPSchedule
from core.training import train


class TrueVelocity(nn.Module):
    """The exact velocity, off by a factor."""

    def __init__(self, ground: Ground, factor: float = 1.0) -> None:
        super().__init__()
        self.teacher = ground.teacher
        self.factor = factor

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        return self.factor * self.teacher(x, t, cond).velocity


def test_the_right_side_is_the_velocity(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    method = SelfConsistentVelocity(mixture_ground(mixture_2d, schedule, t_min=0.01), steps=1)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    exact = MixtureDenoiser(mixture_2d, schedule)(x, t)
    found = method.right_side(x, exact.score, t)
    torch.testing.assert_close(found, exact.velocity, rtol=1e-9, atol=1e-9)


def test_the_residual_is_zero_at_the_true_velocity_alone(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """The score carried along the true flow is the exact one, to the order of Heun's method."""
    ground = mixture_ground(mixture_2d, CosineSchedule())
    method = SelfConsistentVelocity(ground, steps=1)
    t = torch.full((40,), 0.2, dtype=torch.float64)
    x = 0.7 * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    start = ground.teacher(x, t).score
    errors, residuals = [], {}
    for points in (40, 80):
        times = torch.linspace(0.2, 0.8, points + 1, dtype=torch.float64)
        method.student = TrueVelocity(ground)
        end, score = method.path(x, start, times)[-1]
        last = torch.full((40,), 0.8, dtype=torch.float64)
        errors.append((score - ground.teacher(end, last).score).square().mean().sqrt().item())
        for factor in (1.0, 1.1):
            method.student = TrueVelocity(ground, factor)
            end, score = method.path(x, start, times)[-1]
            off = method.residual(end, score, last)
            residuals[points, factor] = off.square().mean().sqrt().item()
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.2)
    assert errors[1] < 1e-3
    assert residuals[80, 1.0] < 1e-2 * residuals[80, 1.1]


def test_training_finds_a_gaussians_velocity() -> None:
    """From the score at t_min alone: what the teacher says at all later times is never asked."""
    gaussian = GaussianMixture(
        weights=torch.ones(1), means=torch.tensor([[0.5]]), covariances=torch.tensor([[0.36]])
    )
    ground = mixture_ground(gaussian, VPSchedule(beta_max=10.0), width=48, t_min=0.02)
    torch.manual_seed(0)
    method = SelfConsistentVelocity(ground, points=6, batch=64, steps=250)
    train(method)
    generator = torch.Generator().manual_seed(1)
    t = ground.times(2000, generator)
    x0, _ = gaussian.sample(2000, generator)
    x_t = ground.schedule.alpha(t)[:, None] * x0 + ground.schedule.sigma(t)[:, None] * torch.randn(
        2000, 1, generator=generator
    )
    exact = ground.teacher(x_t, t).velocity
    with torch.no_grad():
        error = (method.student(x_t, t) - exact).square().mean() / exact.square().mean()
        x = method.sample(method.noise(2000, generator), 30, None, generator)[-1]
    # A velocity of 0 has 1.
    assert error.item() < 0.1
    assert x.mean().item() == pytest.approx(0.5, abs=0.15)
    assert x.std().item() == pytest.approx(0.6, abs=0.12)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1 where"):
        SelfConsistentVelocity(mixture_ground(two_mode_mixture()), t_end=1.0, steps=1)
    with pytest.raises(ValueError, match="t_min > 0"):
        SelfConsistentVelocity(mixture_ground(two_mode_mixture(), t_min=0.0), steps=1)
