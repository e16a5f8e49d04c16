"""CSD against the gradient of a mixture's own classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.csd import CSD
from core.distillation.score.sds import SDS, eps_weighting
from core.guidance import Unconditional
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import NoiseSchedule, VPSchedule, diffuse


def labelled(labels: list[int]) -> Conditioning:
    wanted = torch.tensor(labels)
    return Conditioning(labels=wanted, uncond=Conditioning(labels=-torch.ones_like(wanted)))


def log_posterior_gradient(
    mixture: GaussianMixture, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, labels: Tensor
) -> Tensor:
    """grad log p(label | x_t) by autograd through densities alone."""
    x_t = x_t.detach().requires_grad_()
    noised = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    posterior = noised.class_posterior(x_t).gather(1, labels[:, None])
    return torch.autograd.grad(posterior.log().sum(), [x_t])[0]


def test_it_is_the_gradient_of_the_implicit_classifier(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = VPSchedule(beta_max=8.0)
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    x, eps = (torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    cond = labelled([0, 1, 1, 0, 0, 1])
    assert cond.labels is not None
    scale = 7.5
    classifier = log_posterior_gradient(
        mixture_2d, schedule, diffuse(schedule, x, eps, t), t, cond.labels
    )
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    guidance = ClassifierFreeGuidance(denoiser, scale)
    torch.testing.assert_close(
        CSD(guidance).gradient_at(x, t, eps, cond),
        -scale * sigma.square() / alpha * classifier,
        rtol=1e-8,
        atol=1e-10,
    )
    torch.testing.assert_close(
        CSD(guidance, eps_weighting).gradient_at(x, t, eps, cond),
        -scale * sigma * classifier,
        rtol=1e-8,
        atol=1e-10,
    )
    assert bool((classifier.norm(dim=1) > 1e-4).all())


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guided_sds_is_unconditional_sds_and_csd(
    scale: float,
    schedule: NoiseSchedule,
    mixture_2d: GaussianMixture,
    generator: torch.Generator,
) -> None:
    """So the guided gradient is affine in the scale, and CSD is its slope."""
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    x, eps = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    cond = labelled([0, 1, 0, 1, 1])
    guidance = ClassifierFreeGuidance(denoiser, scale)
    slope = CSD(ClassifierFreeGuidance(denoiser, 1.0)).gradient_at(x, t, eps, cond)
    csd = CSD(guidance).gradient_at(x, t, eps, cond)
    torch.testing.assert_close(csd, scale * slope, rtol=1e-8, atol=1e-9)
    unguided = SDS(Unconditional(denoiser)).gradient_at(x, t, eps, cond)
    guided = SDS(guidance).gradient_at(x, t, eps, cond)
    torch.testing.assert_close(guided, unguided + csd, rtol=1e-8, atol=1e-9)
    assert bool((slope.norm(dim=1) > 1e-8).all())


def test_noise_comes_from_the_generator(mixture_2d: GaussianMixture) -> None:
    csd = CSD(ClassifierFreeGuidance(MixtureDenoiser(mixture_2d, VPSchedule()), 3.0))
    x, t = torch.zeros(2, 2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    drawn = csd.gradient(x, t, labelled([0, 1]), torch.Generator().manual_seed(4))
    eps = torch.randn(2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.equal(drawn, csd.gradient_at(x, t, eps, labelled([0, 1])))
