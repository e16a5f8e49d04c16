"""HiFA's two distances: in pixels one, in latents the gradient of both."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from core.distillation.score.hifa import HiFA, ddim_denoise
from core.distillation.score.sds import SDS, dreamfusion_weighting
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, diffuse


def test_in_pixel_space_the_two_terms_are_one(mixture_2d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    x, t = torch.ones(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    hifa, sds = (
        rule.gradient(x, t, None, torch.Generator().manual_seed(2))
        for rule in (
            HiFA(denoiser=denoiser, image_weight=0.1, weighting=dreamfusion_weighting),
            SDS(denoiser, dreamfusion_weighting),
        )
    )
    torch.testing.assert_close(hifa, 1.1 * sds)


def test_with_latents_it_is_the_gradient_of_the_two_distances(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    down = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    up = torch.randn(2, 5, generator=generator, dtype=torch.float64)

    def encode(x: Tensor) -> Tensor:
        return torch.tanh(x @ down)

    def decode(z: Tensor) -> Tensor:
        return z @ up

    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    z_hat = denoiser(diffuse(schedule, encode(x), eps, t), t).x0
    pixels = x.clone().requires_grad_()
    of_latents = (encode(pixels) - z_hat).square().sum()
    of_pixels = (pixels - decode(z_hat)).square().sum()
    (expected,) = torch.autograd.grad((of_latents + 0.3 * of_pixels) / 2, [pixels])
    rule = HiFA(denoiser=denoiser, image_weight=0.3, encode=encode, decode=decode)
    gradient = rule.gradient(x, t, None, torch.Generator().manual_seed(6))
    torch.testing.assert_close(gradient, expected)
    assert not gradient.requires_grad
    assert not x.requires_grad


def test_the_denoised_image_ends_on_the_exact_path(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    x_t = torch.tensor([[-1.0], [0.2], [1.3]], dtype=torch.float64)
    t = torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64)
    exact = ExactFlowMap(mixture_1d, schedule)(x_t, t, torch.zeros_like(t))
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    errors = [
        (ddim_denoise(denoiser, x_t, t, steps=steps) - exact).abs().max().item()
        for steps in (1, 80, 160, 320)
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors[1:])]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.15)
    assert errors[-1] < 0.05 * errors[0]
    assert torch.equal(ddim_denoise(denoiser, x_t, t, steps=1), denoiser(x_t, t).x0)


def test_mistakes_are_named(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    with pytest.raises(ValueError, match="image_weight"):
        HiFA(denoiser=denoiser, image_weight=-1.0)
    with pytest.raises(ValueError, match="encode and decode"):
        HiFA(denoiser=denoiser, encode=torch.tanh)
    with pytest.raises(ValueError, match="at least one step"):
        ddim_denoise(denoiser, torch.zeros(1, 1), torch.ones(1), steps=0)
