"""Schedules and mixtures that the tests of core share."""

from __future__ import annotations

import pytest
import torch

from core.discrete_schedule import DiscreteVPSchedule
from core.mixture import GaussianMixture
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule, VPSchedule


def _discrete(*, zero_terminal_snr: bool) -> DiscreteVPSchedule:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    if zero_terminal_snr:
        roots = alphas_cumprod.sqrt()
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        alphas_cumprod = roots.square()
    return DiscreteVPSchedule(alphas_cumprod)


SCHEDULES: dict[str, NoiseSchedule] = {
    "flow": FlowSchedule(),
    "vp": VPSchedule(),
    "cosine": CosineSchedule(),
    "ve": VESchedule(sigma_min=0.01, sigma_max=20.0),
    "discrete": _discrete(zero_terminal_snr=False),
    "discrete zero snr": _discrete(zero_terminal_snr=True),
}


@pytest.fixture(params=list(SCHEDULES.values()), ids=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def mixture_1d() -> GaussianMixture:
    return GaussianMixture(
        weights=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
        means=torch.tensor([[-1.0], [0.4], [1.5]], dtype=torch.float64),
        covariances=torch.tensor([[0.1], [0.05], [0.2]], dtype=torch.float64),
        labels=torch.tensor([0, 1, 1]),
    )


@pytest.fixture
def mixture_2d() -> GaussianMixture:
    """Full covariances, correlated and of different shapes."""
    return GaussianMixture(
        weights=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
        means=torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]], dtype=torch.float64),
        covariances=torch.tensor(
            [
                [[0.30, 0.10], [0.10, 0.20]],
                [[0.15, -0.08], [-0.08, 0.25]],
                [[0.40, 0.00], [0.00, 0.10]],
            ],
            dtype=torch.float64,
        ),
        labels=torch.tensor([0, 1, 1]),
    )
