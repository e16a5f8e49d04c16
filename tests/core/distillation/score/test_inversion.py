"""DDIM inversion against the exact flow of a mixture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from core.distillation.score.inversion import ddim_invert
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule
from core.solvers.ddim import ddim_coefficients

X = torch.tensor([[-1.2], [0.3], [0.9], [1.7]], dtype=torch.float64)
T = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)


def test_it_is_of_first_order_toward_the_exact_path(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    start = torch.full_like(T, 0.02)
    exact = ExactFlowMap(mixture_1d, schedule)(0.98 * X, start, T)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    errors = [
        (ddim_invert(denoiser, X, T, steps=steps) - exact).abs().max().item()
        for steps in (40, 80, 160)
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.15)
    assert errors[-1] < 0.05


def test_the_start_costs_the_square_of_its_noise(mixture_1d: GaussianMixture) -> None:
    exact = ExactFlowMap(mixture_1d, FlowSchedule())
    wanted = exact(X, torch.zeros_like(T), T)
    errors = []
    for start in (0.04, 0.02, 0.01):
        at = torch.full_like(T, start)
        errors.append((exact((1 - start) * X, at, T) - wanted).abs().max().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([2.0, 2.0], abs=0.15)


def test_times_below_the_start_are_reached_without_the_denoiser(
    mixture_1d: GaussianMixture,
) -> None:
    t = torch.full((4,), 0.01, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    inverted = ddim_invert(denoiser, X, t, steps=3)
    torch.testing.assert_close(inverted, 0.99 * X)


def test_eta_adds_its_share_of_ddpms_noise(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    seed = torch.Generator().manual_seed(3)
    noisy = ddim_invert(denoiser, X, T, steps=1, eta=0.3, generator=seed)
    z = torch.randn(4, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, _, std = ddim_coefficients(schedule, T, torch.full_like(T, 0.02), 1.0)
    expected = ddim_invert(denoiser, X, T, steps=1) + 0.3 * std[:, None] * z
    torch.testing.assert_close(noisy, expected)
    assert bool((std > 1e-3).all())
    with pytest.raises(ValueError, match="generator"):
        ddim_invert(denoiser, X, T, steps=1, eta=0.3)
    with pytest.raises(ValueError, match="at least one step"):
        ddim_invert(denoiser, X, T, steps=0)
