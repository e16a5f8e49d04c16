"""Guidance rescale: the spread it promises, in the space it promises it."""

from __future__ import annotations

import pytest
import torch

from core.denoiser import (
    ClassifierFreeGuidance,
    Conditioning,
    Denoiser,
    Guidance,
    PerpNegGuidance,
)
from core.guidance import GuidanceRescale, Unconditional
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Parametrisation
from core.schedule import FlowSchedule, NoiseSchedule


def labelled() -> Conditioning:
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    return Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))


def noisy(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x_t = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return x_t, torch.linspace(0.3, 0.8, 6, dtype=torch.float64)


def guidances(denoiser: Denoiser) -> list[Guidance]:
    return [
        ClassifierFreeGuidance(denoiser, 8.0),
        PerpNegGuidance(
            denoiser, 8.0, [Conditioning(labels=torch.zeros(1, dtype=torch.long))], torch.ones(1)
        ),
    ]


@pytest.mark.parametrize("space", list(Parametrisation))
@pytest.mark.parametrize("views", [1, 3])
def test_the_spread_lies_between_the_two(
    space: Parametrisation,
    views: int,
    mixture_2d: GaussianMixture,
    generator: torch.Generator,
) -> None:
    """std = phi std_cond + (1 - phi) std_guided, over each group; the direction stays."""
    x_t, t = noisy(generator)
    for guidance in guidances(MixtureDenoiser(mixture_2d, FlowSchedule())):
        parts = guidance.parts(x_t, t, labelled())
        guided = parts.guided.read(space)
        conditional = parts.conditional.read(space)
        rescaled = GuidanceRescale(guidance=guidance, rescale=0.7, space=space, views=views)
        result = rescaled(x_t, t, labelled()).read(space)
        groups = [value.reshape(6 // views, -1) for value in (result, conditional, guided)]
        stds = [group.std(1) for group in groups]
        torch.testing.assert_close(stds[0], 0.7 * stds[1] + 0.3 * stds[2])
        cosine = torch.cosine_similarity(groups[0], groups[2], dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        assert bool(((stds[2] / stds[1]).log().abs() > 0.02).any())


def test_none_of_it_is_the_guidance_and_its_parts_are_kept(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x_t, t = noisy(generator)
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    for guidance in guidances(denoiser):
        plain = guidance.parts(x_t, t, labelled())
        assert torch.equal(guidance(x_t, t, labelled()).value, plain.guided.value)
        none = GuidanceRescale(guidance=guidance, rescale=0.0)(x_t, t, labelled())
        assert torch.equal(none.value, plain.guided.value)
        whole = GuidanceRescale(guidance=guidance, rescale=1.0).parts(x_t, t, labelled())
        assert torch.equal(whole.conditional.value, plain.conditional.value)
        assert torch.equal(whole.unconditional.value, plain.unconditional.value)
        assert whole.conditional.value.equal(denoiser(x_t, t, labelled()).value)


def test_a_flat_output_is_left_flat() -> None:
    point = GaussianMixture(
        weights=torch.ones(1), means=torch.ones(1, 2), covariances=torch.zeros(1, 2)
    )
    guidance = ClassifierFreeGuidance(MixtureDenoiser(point, FlowSchedule()), 3.0)
    cond = Conditioning(
        labels=torch.zeros(2, dtype=torch.long),
        uncond=Conditioning(labels=torch.zeros(2, dtype=torch.long)),
    )
    x_t, t = torch.ones(2, 2), torch.full((2,), 0.5)
    result = GuidanceRescale(guidance=guidance, rescale=1.0)(x_t, t, cond).x0
    torch.testing.assert_close(result, torch.ones(2, 2))


def test_unconditional_is_guidance_at_scale_zero(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x_t, t = noisy(generator)
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    alone = Unconditional(denoiser)
    assert alone.schedule == schedule
    expected = ClassifierFreeGuidance(denoiser, 0.0)(x_t, t, labelled())
    torch.testing.assert_close(alone(x_t, t, labelled()).value, expected.value)
    assert torch.equal(alone(x_t, t).value, denoiser(x_t, t).value)
    one = Conditioning(labels=torch.zeros(1, dtype=torch.long), uncond=labelled().select([0]))
    assert torch.equal(
        alone(x_t, t, one).value, denoiser(x_t, t, Conditioning(labels=torch.zeros(6).long())).value
    )
    with pytest.raises(ValueError, match=r"needs cond\.uncond"):
        alone(x_t, t, Conditioning(labels=torch.zeros(6, dtype=torch.long)))


def test_mistakes_are_named(mixture_2d: GaussianMixture, generator: torch.Generator) -> None:
    guidance = ClassifierFreeGuidance(MixtureDenoiser(mixture_2d, FlowSchedule()), 2.0)
    with pytest.raises(ValueError, match="rescale"):
        GuidanceRescale(guidance=guidance, rescale=1.5)
    with pytest.raises(ValueError, match="views"):
        GuidanceRescale(guidance=guidance, rescale=0.5, views=0)
    x_t, t = noisy(generator)
    with pytest.raises(ValueError, match="no multiple of 4 views"):
        GuidanceRescale(guidance=guidance, rescale=0.5, views=4)(x_t, t, labelled())
