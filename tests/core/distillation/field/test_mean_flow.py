"""MeanFlow against the exact mean velocity of a mixture's flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.mean_flow import MeanFlow
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture
from core.training import train


def test_the_identity_holds_at_the_exact_mean_velocity() -> None:
    """On one Gaussian the mean velocity is known: its residual's mean is zero, another's is not."""
    std = 0.5
    mixture = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.zeros(1, 1, dtype=torch.float64),
        covariances=torch.full((1, 1), std**2, dtype=torch.float64),
    )
    ground = mixture_ground(mixture)

    class Exact(nn.Module):
        """x_s = x_t sqrt(v_s / v_t), v = ((1 - t) std)^2 + t^2: u = (x_s - x_t) / (s - t)."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

        def forward(
            self, x: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
        ) -> Tensor:
            def variance(t: Tensor) -> Tensor:
                return ((1 - t) * std).square() + t.square()

            gap = torch.where((t - s).abs() < 1e-6, 1e-6, t - s)
            ratio = (variance(t - gap) / variance(t)).sqrt()
            return self.factor * (x * ((ratio - 1) / -gap)[:, None])

    gradients = {}
    for factor in (1.0, 1.1):
        method = MeanFlow(ground, steps=1, batch=400_000)
        method.student = Exact(factor)
        loss = method.loss(torch.Generator().manual_seed(2))
        gradients[factor] = torch.autograd.grad(loss, [method.student.factor])[0].item()
    assert abs(gradients[1.0]) < 0.03 * abs(gradients[1.1])


def test_one_step_lands_near_the_exact_flow() -> None:
    mixture = two_mode_mixture()
    ground = mixture_ground(mixture)
    torch.manual_seed(0)
    method = MeanFlow(ground, steps=1200)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = ground.noise(2000, generator)
    exact = ExactFlowMap(mixture, ground.schedule)(z, torch.ones(2000), torch.full((2000,), 1e-3))
    with torch.no_grad():
        one = method.sample(z, 1, None, generator)[-1]
    # The untrained map's error is about 1; a constant velocity's about 0.5.
    assert float((one - exact).square().mean().sqrt()) < 0.25
