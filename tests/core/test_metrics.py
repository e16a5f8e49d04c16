"""Distances: closed forms, brute force, exact unbiasedness by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from core.metrics import (
    chamfer_distance,
    frechet_distance,
    mmd_squared,
    mode_weights,
    sliced_wasserstein,
    wasserstein_1d,
)
from core.mixture import GaussianMixture

BANDWIDTHS = (0.4, 1.5)


def population_mmd(p: Tensor, q: Tensor) -> Tensor:
    """MMD^2 of the uniform distributions on p and q, points compared with themselves too."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(2)
        return torch.stack([torch.exp(-squared / (2 * h * h)).mean() for h in BANDWIDTHS]).mean()

    return mean(p, p) + mean(q, q) - 2 * mean(p, q)


def test_mmd_is_unbiased_exactly(generator: torch.Generator) -> None:
    """Over all 3^2 x 4^3 equally likely draws its mean is the population's value."""
    p = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    q = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    estimates = [
        mmd_squared(p[list(i)], q[list(j)], BANDWIDTHS)
        for i in itertools.product(range(3), repeat=2)
        for j in itertools.product(range(4), repeat=3)
    ]
    mean = torch.stack(estimates).mean()
    torch.testing.assert_close(mean, population_mmd(p, q), rtol=1e-12, atol=1e-14)
    assert min(estimates) < 0 < mean


def test_mmd_is_zero_for_equal_distributions_alone(generator: torch.Generator) -> None:
    """Not for equal moments: a sign and a normal agree in their first three."""
    x = torch.randn(1500, 1, generator=generator, dtype=torch.float64)
    y = torch.randn(1500, 1, generator=generator, dtype=torch.float64)
    signs = y.sign()
    assert abs(mmd_squared(x, y, BANDWIDTHS).item()) < 0.003
    assert mmd_squared(x, signs, BANDWIDTHS).item() > 0.05


def test_mmds_gradient_is_finite_on_the_diagonal(generator: torch.Generator) -> None:
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mmd_squared(x, y, BANDWIDTHS), x)


def test_mmd_refuses_what_it_cannot_estimate() -> None:
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="two samples a side"):
        mmd_squared(x[:1], x, BANDWIDTHS)
    with pytest.raises(ValueError, match="positive bandwidths"):
        mmd_squared(x, x, (0.0,))


def test_wasserstein_on_a_line_against_a_common_refinement(generator: torch.Generator) -> None:
    """Sets of 6 and 4 against the same sets repeated to 12 each; and a shift."""
    x = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    repeated = wasserstein_1d(x.repeat(1, 2), y.repeat(1, 3))
    torch.testing.assert_close(wasserstein_1d(x, y), repeated, rtol=1e-12, atol=1e-14)
    shifted = wasserstein_1d(x, x + 0.3, power=1)
    torch.testing.assert_close(shifted, torch.full((2,), 0.3, dtype=torch.float64))


def test_sliced_wasserstein_of_a_shift(generator: torch.Generator) -> None:
    """The mean of (direction . shift)^2 is |shift|^2 / D; in one dimension it is W_2 itself."""
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    shift = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, generator, directions=20_000)
    assert found.square().item() == pytest.approx((shift.square().sum() / 3).item(), rel=0.02)
    y = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    on_line = sliced_wasserstein(x[:, :1], y, generator)
    torch.testing.assert_close(on_line.square(), wasserstein_1d(x[:, 0], y[:, 0]))


def test_chamfer_against_brute_force_and_permutations(generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    found = chamfer_distance(x, y)
    for a, b, value in zip(x, y, found, strict=True):
        forth = sum(min(float((p - q) @ (p - q)) for q in b) for p in a) / 5
        back = sum(min(float((p - q) @ (p - q)) for p in a) for q in b) / 7
        assert value.item() == pytest.approx(forth + back, rel=1e-12)
    order_x = torch.randperm(5, generator=generator)
    order_y = torch.randperm(7, generator=generator)
    permuted = chamfer_distance(x[:, order_x], y[:, order_y])
    torch.testing.assert_close(permuted, found, rtol=1e-14, atol=0)
    assert bool((chamfer_distance(x, x[:, order_x]) == 0).all())
    assert torch.autograd.gradcheck(lambda x: chamfer_distance(x, y), x.requires_grad_())


def test_frechet_distance_of_commuting_covariances(generator: torch.Generator) -> None:
    """A scaled and shifted copy: |shift|^2 + (1 - scale)^2 tr C."""
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64) @ torch.randn(
        3, 3, generator=generator, dtype=torch.float64
    )
    centred = x - x.mean(0)
    found = frechet_distance(centred, 1.5 * centred + 0.2).item()
    expected = 3 * 0.04 + 0.25 * torch.cov(x.T).trace().item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x).item() == pytest.approx(0, abs=1e-9)


def test_mode_weights_of_the_mixtures_own_samples(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x, _ = mixture_2d.sample(40_000, generator)
    found = mode_weights(x, mixture_2d)
    torch.testing.assert_close(found, mixture_2d.weights, atol=0.01, rtol=0)
