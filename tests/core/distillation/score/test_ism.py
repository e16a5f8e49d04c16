"""ISM: nothing without guidance but O(interval), and CSD on top with it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning, Denoiser
from core.distillation.score.inversion import ddim_invert
from core.distillation.score.ism import ISM
from core.guidance import Unconditional
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, VESchedule
from core.solvers.ddim import ddim_step

X = torch.tensor([[-1.2], [0.3], [0.9], [1.7]], dtype=torch.float64)
T = torch.tensor([0.45, 0.5, 0.6, 0.7], dtype=torch.float64)
GENERATOR = torch.Generator()


def labelled() -> Conditioning:
    labels = torch.tensor([0, 1, 1, 0])
    return Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))


def test_without_guidance_it_is_of_the_order_of_the_interval(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    norms = []
    for interval in (0.1, 0.05, 0.025, 0.0125):
        ism = ISM(denoiser=denoiser, inverter=denoiser, interval=interval, inversion_steps=20)
        norms.append(ism.gradient(X, T, None, GENERATOR).norm().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(norms)]
    assert slopes[-1] == pytest.approx(1.0, abs=0.1)
    assert norms[0] > 5 * norms[-1] > 1e-4


def test_guidance_is_affine_in_its_scale_with_csd_for_a_slope(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    inverter, cond = Unconditional(denoiser), labelled()

    def gradient(of: Denoiser) -> Tensor:
        ism = ISM(denoiser=of, inverter=inverter, interval=0.1, inversion_steps=4)
        return ism.gradient(X, T, cond, GENERATOR)

    s = T - 0.1
    x_s = ddim_invert(inverter, X, s, cond, steps=4)
    x_t = ddim_step(inverter(x_s, s, cond), T)
    difference = denoiser(x_t, T, cond).eps - inverter(x_t, T, cond).eps
    slope = (schedule.sigma(T) / schedule.alpha(T))[:, None] * difference
    plain = gradient(inverter)
    for scale in (1.0, 7.5):
        guided = gradient(ClassifierFreeGuidance(denoiser, scale))
        torch.testing.assert_close(guided, plain + scale * slope, rtol=1e-9, atol=1e-10)
    assert bool((slope.abs() > 1e-3).all())


def test_it_draws_nothing(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    ism = ISM(denoiser=denoiser, inverter=denoiser)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    before = generators[0].get_state()
    first, second = (ism.gradient(X, T, None, generator) for generator in generators)
    assert torch.equal(first, second)
    assert torch.equal(generators[0].get_state(), before)
    # Times too small for an interval are moved up to the first that has one.
    early = torch.full_like(T, 0.01)
    raised = ism.gradient(X, torch.full_like(T, 0.07), None, generators[0])
    assert torch.equal(ism.gradient(X, early, None, generators[0]), raised)


def test_mistakes_are_named(mixture_1d: GaussianMixture) -> None:
    flow = MixtureDenoiser(mixture_1d, FlowSchedule())
    with pytest.raises(ValueError, match="interval"):
        ISM(denoiser=flow, inverter=flow, interval=0.0)
    with pytest.raises(ValueError, match="one schedule"):
        ISM(denoiser=flow, inverter=MixtureDenoiser(mixture_1d, VESchedule()))
