"""MVDream's reconstruction: the gradient of a squared distance, with its target's spread tamed."""

from __future__ import annotations

import torch

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.reconstruction import Reconstruction
from core.distillation.score.sds import SDS
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, diffuse


def test_the_gradient_is_that_of_the_distance_to_the_rescaled_target(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    guidance = ClassifierFreeGuidance(denoiser, 50.0)
    x, eps = (torch.randn(8, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.full((8,), 0.6, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    cond = Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))
    x_t = diffuse(schedule, x, eps, t)
    guided, plain = guidance(x_t, t, cond).x0, denoiser(x_t, t, cond).x0
    # Two objects of four views each; half of the way to the conditional spread.
    target = torch.cat(
        [
            (0.5 * plain[half].std() / guided[half].std() + 0.5) * guided[half]
            for half in (slice(4), slice(4, 8))
        ]
    )
    image = x.clone().requires_grad_()
    loss = (image - target).square().sum() / 2
    (expected,) = torch.autograd.grad(loss, [image])
    rule = Reconstruction(guidance=guidance, views=4)
    torch.testing.assert_close(rule.gradient_at(x, t, eps, cond), expected)
    # Scale 50 had blown the targets up.
    assert guided.std() > 1.5 * target.std()


def test_without_rescale_it_is_sds(mixture_2d: GaussianMixture) -> None:
    guidance = ClassifierFreeGuidance(MixtureDenoiser(mixture_2d, FlowSchedule()), 5.0)
    x, t = torch.zeros(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    cond = Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))
    first, second = (
        rule.gradient(x, t, cond, torch.Generator().manual_seed(2))
        for rule in (Reconstruction(guidance=guidance, rescale=0.0), SDS(guidance))
    )
    assert torch.equal(first, second)
