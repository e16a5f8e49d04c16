"""SDI on a Gaussian, where the inverted noise and its gradient are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.inversion import ddim_invert
from core.distillation.score.sdi import SDI
from core.distillation.score.sds import eps_weighting
from core.guidance import Unconditional
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, VESchedule

MEAN, VARIANCE = 0.4, 0.3
GAUSSIAN = GaussianMixture(
    weights=torch.ones(1, dtype=torch.float64),
    means=torch.tensor([[MEAN]], dtype=torch.float64),
    covariances=torch.tensor([[VARIANCE]], dtype=torch.float64),
)
X = torch.tensor([[-1.2], [0.3], [0.9], [1.7]], dtype=torch.float64)
T = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)


def test_on_a_gaussian_it_is_the_closed_form_in_the_limit() -> None:
    """x_t = alpha m + r (x - m), r^2 = (alpha^2 v + sigma^2) / v, so that
    x - D(x_t) = (x - m) (1 - alpha sqrt(v / (alpha^2 v + sigma^2))).
    """
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(GAUSSIAN, schedule)
    alpha, sigma = schedule.alpha(T)[:, None], schedule.sigma(T)[:, None]
    spread = alpha.square() * VARIANCE + sigma.square()
    expected = (X - MEAN) * (1 - alpha * (VARIANCE / spread).sqrt())
    errors = []
    for steps in (40, 80, 160):
        sdi = SDI(denoiser=denoiser, inverter=denoiser, inversion_steps=steps, eta=0, start=1e-3)
        gradient = sdi.gradient(X, T, None, torch.Generator())
        errors.append((gradient - expected).abs().max().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.1)
    assert errors[-1] < 0.01 * expected.abs().max().item()


def test_the_inverted_noise_is_the_target_at_guidance(mixture_1d: GaussianMixture) -> None:
    """The gradient is affine in the forward scale; the inverter alone says where it is asked."""
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    labels = torch.tensor([0, 1, 1, 0])
    cond = Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))
    inverter = ClassifierFreeGuidance(denoiser, -1.0)
    x_t = ddim_invert(inverter, X, T, cond, steps=5)
    conditional = X - denoiser(x_t, T, cond).x0
    unconditional = X - Unconditional(denoiser)(x_t, T, cond).x0
    for scale in (0.0, 3.0):
        guided = ClassifierFreeGuidance(denoiser, scale)
        sdi = SDI(denoiser=guided, inverter=inverter, inversion_steps=5, eta=0)
        gradient = sdi.gradient(X, T, cond, torch.Generator())
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
    weighted = SDI(
        denoiser=denoiser, inverter=inverter, inversion_steps=5, eta=0, weighting=eps_weighting
    )
    factor = ((1 - T) / T)[:, None]
    torch.testing.assert_close(
        weighted.gradient(X, T, cond, torch.Generator()), factor * conditional
    )


def test_only_eta_draws(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    for eta in (0.0, 0.3):
        sdi = SDI(denoiser=denoiser, inverter=denoiser, inversion_steps=3, eta=eta)
        draws = [
            sdi.gradient(X, T, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        ]
        assert torch.equal(draws[0], draws[1])
        assert torch.equal(draws[0], draws[2]) == (eta == 0)
    with pytest.raises(ValueError, match="eta"):
        SDI(denoiser=denoiser, inverter=denoiser, eta=2.0)
    with pytest.raises(ValueError, match="one schedule"):
        SDI(denoiser=denoiser, inverter=MixtureDenoiser(mixture_1d, VESchedule()))
