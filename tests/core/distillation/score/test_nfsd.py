"""NFSD: SDS without its noise where there is little, CSD against a negative where there is more."""

from __future__ import annotations

import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.csd import CSD
from core.distillation.score.nfsd import NFSD
from core.distillation.score.sds import SDS, dreamfusion_weighting
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, diffuse

SCHEDULE = FlowSchedule()


def label(value: int, count: int = 6) -> Conditioning:
    return Conditioning(labels=torch.full((count,), value))


def images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (6, 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def test_where_noise_is_little_it_is_sds_without_the_noise(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """Their difference is (sigma/alpha) eps, of mean 0: the same expectation."""
    denoiser = MixtureDenoiser(mixture_2d, SCHEDULE)
    guidance = ClassifierFreeGuidance(denoiser, 7.5)
    x, eps = images(generator)
    t = torch.linspace(0.02, 0.19, 6, dtype=torch.float64)
    cond = Conditioning(labels=torch.tensor([0, 1, 0, 1, 1, 0]), uncond=label(-1))
    nfsd = NFSD(guidance=guidance, denoiser=denoiser, negative=label(0))
    noise = (SCHEDULE.sigma(t) / SCHEDULE.alpha(t))[:, None] * eps
    torch.testing.assert_close(
        nfsd.gradient_at(x, t, eps, cond),
        SDS(guidance).gradient_at(x, t, eps, cond) + noise,
        rtol=1e-8,
        atol=1e-9,
    )


def test_above_the_limit_it_flees_the_negative(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """delta_D = sigma grad log p(negative | x_t): down the negative's posterior."""
    denoiser = MixtureDenoiser(mixture_2d, SCHEDULE)
    guidance = ClassifierFreeGuidance(denoiser, 7.5)
    x, eps = images(generator)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    cond = Conditioning(labels=torch.tensor([0, 1, 0, 1, 1, 0]), uncond=label(-1))
    x_t = diffuse(SCHEDULE, x, eps, t).requires_grad_()
    posterior = mixture_2d.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).class_posterior(x_t)
    (of_negative,) = torch.autograd.grad(posterior[:, 0].log().sum(), [x_t])
    nfsd = NFSD(
        guidance=guidance, denoiser=denoiser, negative=label(0), weighting=dreamfusion_weighting
    )
    csd = CSD(guidance, dreamfusion_weighting)
    factor = (SCHEDULE.sigma(t) ** 3)[:, None]
    torch.testing.assert_close(
        nfsd.gradient_at(x, t, eps, cond),
        csd.gradient_at(x, t, eps, cond) + factor * of_negative,
        rtol=1e-8,
        atol=1e-9,
    )
    assert bool((of_negative.norm(dim=1) > 1e-4).all())


def test_with_the_empty_prompt_for_a_negative_it_is_csd(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    denoiser = MixtureDenoiser(mixture_2d, SCHEDULE)
    guidance = ClassifierFreeGuidance(denoiser, 7.5)
    x, _ = images(generator)
    t = torch.full((6,), 0.5, dtype=torch.float64)
    cond = Conditioning(labels=torch.tensor([0, 1, 0, 1, 1, 0]), uncond=label(-1))
    # A negative of one sample serves the whole batch.
    nfsd = NFSD(guidance=guidance, denoiser=denoiser, negative=label(-1, 1))
    drawn = [
        rule.gradient(x, t, cond, torch.Generator().manual_seed(8))
        for rule in (nfsd, CSD(guidance))
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-9, atol=1e-10)
    assert drawn[1].norm() > 0.1
