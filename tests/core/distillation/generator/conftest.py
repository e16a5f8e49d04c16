"""What the generators' tests share: exact laws of simple generators, and quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.mixture import GaussianMixture


class AffineGenerator(nn.Module):
    """x = shift + matrix z, in float64: a normal law whose noised density is known."""

    def __init__(self, shift: list[float], matrix: list[list[float]]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.tensor(matrix, dtype=torch.float64))

    def forward(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.shift + z @ self.matrix.T

    def law(self) -> GaussianMixture:
        """The law of x for a standard normal z; may be singular."""
        shift, matrix = self.shift.detach(), self.matrix.detach()
        return GaussianMixture(
            weights=torch.ones(1, dtype=torch.float64),
            means=shift[None],
            covariances=(matrix @ matrix.T)[None],
        )


def _gauss_hermite(dimension: int, n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    weights = weights / weights.sum()
    grids = np.meshgrid(*[nodes] * dimension, indexing="ij")
    products = np.meshgrid(*[weights] * dimension, indexing="ij")
    return (
        torch.from_numpy(np.stack([grid.ravel() for grid in grids], 1)),
        torch.from_numpy(np.prod([product.ravel() for product in products], axis=0)),
    )


@pytest.fixture
def gauss_hermite() -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """(D, n) to nodes [n^D, D] and weights [n^D] of the standard normal expectation."""
    return _gauss_hermite


@pytest.fixture
def line_generator() -> AffineGenerator:
    """One number to one number."""
    return AffineGenerator([0.3], [[0.6]])


@pytest.fixture
def plane_generator() -> AffineGenerator:
    """One number to the plane: the latent has another dimension than the data."""
    return AffineGenerator([0.2, -0.4], [[0.7], [0.3]])


@pytest.fixture
def ground() -> Ground:
    """Two modes on a line, of weights 0.3 and 0.7, and networks small enough for seconds."""
    return mixture_ground(two_mode_mixture(), width=64)


@pytest.fixture
def wasserstein() -> Callable[[Tensor], float]:
    """The W1 distance of samples [n, 1] of the two-mode ground to its quantiles."""
    mixture = two_mode_mixture()
    exact = mixture.sample(20_000, torch.Generator().manual_seed(9))[0][:, 0]

    def distance(x: Tensor) -> float:
        levels = (torch.arange(1000) + 0.5) / 1000
        return float((torch.quantile(x[:, 0], levels) - torch.quantile(exact, levels)).abs().mean())

    return distance


@pytest.fixture
def left_mass() -> Callable[[Tensor], float]:
    """The part of samples [n, 1] in the two-mode ground's left mode; 0.3 in the data."""

    def mass(x: Tensor) -> float:
        return float((x[:, 0] < -0.2).double().mean())

    return mass
