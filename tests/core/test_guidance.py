"""Guidance rescale: the spread it promises; guidance in one pass: the two passes it replaces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from core.denoiser import (
    ClassifierFreeGuidance,
    Conditioning,
    Denoiser,
    Guidance,
    PerpNegGuidance,
)
from core.distillation.field.guidance import GuidedTeacher
from core.guidance import EmbeddedGuidance, GuidanceRescale, Unconditional, guided
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
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


@pytest.mark.parametrize("views", [1, 3])
def test_the_spread_lies_between_the_two(
    views: int, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """std = phi std_cond + (1 - phi) std_guided, over each group; the direction stays."""
    x_t, t = noisy(generator)
    for guidance in guidances(MixtureDenoiser(mixture_2d, FlowSchedule())):
        parts = guidance.parts(x_t, t, labelled())
        rescaled = GuidanceRescale(guidance=guidance, rescale=0.7, views=views)
        result = rescaled(x_t, t, labelled())
        groups = [
            prediction.x0.reshape(6 // views, -1)
            for prediction in (result, parts.conditional, parts.guided)
        ]
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


# --- guidance in one pass --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distilled:
    """A perfect student of guidance: it says in one call what the two passes say."""

    teacher: Denoiser
    guidance_scales: tuple[float, float] = (1.0, 8.0)
    asked: list[Conditioning | None] = field(default_factory=list)

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.asked.append(cond)
        assert cond is not None
        assert cond.labels is not None
        uncond = Conditioning(labels=-torch.ones_like(cond.labels))
        return GuidedTeacher(self.teacher)(x_t, t, replace(cond, uncond=uncond))


def test_one_pass_of_embedded_guidance_is_two_of_classifier_free(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    x_t, t = noisy(generator)
    for scale in (1.0, 3.5, 8.0):
        student = Distilled(denoiser)
        one_pass = guided(student, scale)
        two_pass = guided(denoiser, scale)
        assert isinstance(one_pass, EmbeddedGuidance)
        assert isinstance(two_pass, ClassifierFreeGuidance)
        expected = two_pass(x_t, t, labelled())
        torch.testing.assert_close(one_pass(x_t, t, labelled()).x0, expected.x0)
        (cond,) = student.asked
        assert cond is not None
        assert cond.uncond is None
        assert cond.guidance_scale is not None
        assert cond.guidance_scale.tolist() == [scale] * 6


def test_one_sample_s_conditioning_is_expanded(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x_t, t = noisy(generator)
    student = Distilled(MixtureDenoiser(mixture_2d, FlowSchedule()))
    alone = guided(student, 2.0)(x_t, t, Conditioning(labels=torch.tensor([1])))
    together = guided(student, 2.0)(x_t, t, Conditioning(labels=torch.ones(6, dtype=torch.long)))
    assert torch.equal(alone.x0, together.x0)


@pytest.mark.parametrize("scale", [0.99, 8.01, -4.0])
def test_scales_that_were_not_distilled_are_refused(
    scale: float, mixture_2d: GaussianMixture
) -> None:
    student = Distilled(MixtureDenoiser(mixture_2d, FlowSchedule()))
    with pytest.raises(ValueError, match="guidance scales of 1 to 8"):
        guided(student, scale)
