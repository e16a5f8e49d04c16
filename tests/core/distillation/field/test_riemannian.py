"""Flow matching on the sphere: a point's exact field, and two caps of unequal weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.riemannian import RiemannianFlowMatching
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.mixture import GaussianMixture
from core.sphere import log_map
from core.training import train


class TowardPoint(nn.Module):
    """-log(x, pole) / t: the rate of every geodesic that leaves the pole at t = 0."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        pole = torch.tensor([0.0, 0.0, 1.0]).expand_as(x)
        # What lies along x is no tangent, and is dropped.
        return -self.factor * log_map(x, pole) / t[:, None].clamp(min=0.01) + x


def test_a_points_field_is_exact() -> None:
    """All data in one direction: the conditional field is the field, and the loss is 0."""
    point = GaussianMixture(
        weights=torch.ones(1), means=torch.tensor([[0.0, 0.0, 2.0]]), covariances=torch.zeros(1, 3)
    )
    method = RiemannianFlowMatching(mixture_ground(point), steps=1, batch=4096)
    losses = {}
    for factor in (1.0, 0.9):
        method.student = TowardPoint(factor)
        losses[factor] = method.loss(torch.Generator().manual_seed(0)).item()
    # The clamp at t = 0.01 is felt by a hundredth of the draws.
    assert losses[1.0] < 0.01
    assert losses[0.9] > losses[1.0] + 0.005
    x = method.noise(500, torch.Generator().manual_seed(1))
    method.student = TowardPoint(1.0)
    with torch.no_grad():
        states = method.sample(x, 8, None, torch.Generator())
    pole = torch.tensor([[0.0, 0.0, 1.0]]).expand_as(x)
    torch.testing.assert_close(states[-1], pole, atol=1e-3, rtol=0)
    # Euler is exact along a geodesic of constant speed: halfway in time is halfway in angle.
    half = log_map(pole, states[4]).norm(dim=1) / log_map(pole, x).norm(dim=1)
    torch.testing.assert_close(half, torch.full((500,), 0.5), atol=1e-3, rtol=0)


def test_two_caps_keep_their_weights() -> None:
    caps = GaussianMixture(
        weights=torch.tensor([0.3, 0.7]),
        means=torch.tensor([[1.0, 0.0, 0.0], [-0.5, 0.0, 0.85]]),
        covariances=torch.full((2, 3), 0.01),
    )
    torch.manual_seed(0)
    method = RiemannianFlowMatching(mixture_ground(caps, width=96), steps=600)
    train(method)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        x = method.sample(method.noise(3000, generator), 16, None, generator)[-1]
    torch.testing.assert_close(x.norm(dim=1), torch.ones(3000), atol=1e-5, rtol=0)
    cosines = x @ (caps.means / caps.means.norm(dim=1, keepdim=True)).T
    # Within 30 degrees; the uniform prior has 0.07 in each.
    shares = (cosines > 0.866).float().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.7]), atol=0.07, rtol=0)


def test_directions_need_a_plane() -> None:
    with pytest.raises(ValueError, match="D >= 2"):
        RiemannianFlowMatching(mixture_ground(two_mode_mixture()), steps=1)
