"""The conditional KL against the closed form, DDIM's own error, and the marginal KL it bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from core.denoiser import Conditioning
from core.distillation.generator.conditional_kl import ConditionalKL
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture
from core.training import train


def test_the_loss_is_the_kl_of_the_two_conditional_laws(generator: torch.Generator) -> None:
    mixture = two_mode_mixture().to(dtype=torch.float64)
    torch.manual_seed(0)
    method = ConditionalKL(mixture_ground(mixture), solver_steps=4, output_std=0.3, steps=1)
    method.student.double()
    z = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    teacher, student = (Normal(mean, 0.3) for mean in (method.target(z), method.generate(z)))
    expected = kl_divergence(teacher, student).sum(1).mean()
    assert method.loss_at(z).item() == pytest.approx(expected.item(), rel=1e-12)
    assert expected.item() > 0.1


class Exact(nn.Module):
    """The exact flow from the prior to t_min, as a generator of a latent of unit spread."""

    def __init__(self, mixture: GaussianMixture, ground: Ground, std: float) -> None:
        super().__init__()
        self.flow = ExactFlowMap(mixture, ground.schedule)
        self.ground = ground
        self.std = std

    def forward(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        ones = torch.ones(len(z), dtype=z.dtype)
        return self.flow(self.std * z, self.ground.t_max * ones, self.ground.t_min * ones)


def test_at_the_exact_flow_the_loss_is_the_square_of_ddims_error() -> None:
    """No loss is irreducible: it falls with slope 2 in the teacher's steps."""
    mixture = two_mode_mixture().to(dtype=torch.float64)
    ground = replace(mixture_ground(mixture), t_min=0.25, t_max=0.5)
    std = (0.5**2 + (0.5 * ground.data_std) ** 2) ** 0.5
    z = std * torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    losses = []
    for solver_steps in (64, 256, 1024):
        method = ConditionalKL(ground, solver_steps=solver_steps, steps=1)
        method.student = Exact(mixture, ground, std)
        losses.append(method.loss_at(z).item())
    slopes = torch.tensor(losses).log2().diff() / 2
    assert bool(((slopes + 2).abs() < 0.1).all()), slopes
    assert losses[-1] < 1e-4


class Scaled(nn.Module):
    """A linear generator."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.factor * z


def test_it_bounds_the_divergence_of_the_samples() -> None:
    """Of one Gaussian, teacher and student are linear and both KLs are known."""
    mixture = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.zeros(1, 1, dtype=torch.float64),
        covariances=torch.full((1, 1), 0.25, dtype=torch.float64),
    )
    method = ConditionalKL(mixture_ground(mixture), solver_steps=8, output_std=0.2, steps=1)
    teacher = method.target(torch.ones(1, 1, dtype=torch.float64)).item()
    for factor in (-0.4, 0.3, 0.49, 0.8):
        method.student = Scaled(factor)
        # E z^2 = 1 over these two latents, as over the normal ones.
        conditional = method.loss_at(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
        spreads = [torch.tensor(s**2 + 0.2**2).sqrt() for s in (teacher, factor)]
        marginal = kl_divergence(Normal(0, spreads[0]), Normal(0, spreads[1]))
        assert conditional.item() == pytest.approx((factor - teacher) ** 2 / (2 * 0.2**2))
        assert marginal.item() <= conditional.item()


def test_settings_that_cannot_work_are_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="solver_steps"):
        ConditionalKL(ground, solver_steps=0, steps=1)
    with pytest.raises(ValueError, match="output_std"):
        ConditionalKL(ground, output_std=0.0, steps=1)


def test_one_step_lands_on_the_teachers_sample(
    ground: Ground, wasserstein: Callable[[Tensor], float]
) -> None:
    torch.manual_seed(0)
    method = ConditionalKL(ground, solver_steps=8, steps=400)
    z = method.noise(4000, torch.Generator().manual_seed(5))
    train(method)
    with torch.no_grad():
        x = method.generate(z)
        error = (x - method.target(z)).square().mean().sqrt().item()
    # Untrained both are about 0.9; the best constant's error is 0.9, a linear map's 0.4.
    assert error < 0.2
    assert wasserstein(x) < 0.25
