"""Conditioning as a value, and guidance checked on a mixture's exact class-conditional scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.denoiser import (
    ClassifierFreeGuidance,
    Conditioning,
    PerpNegGuidance,
    can_concatenate,
    concatenate,
)
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule


def text_cond(n: int, length: int, *, masked: bool = False, camera: bool = False) -> Conditioning:
    values = torch.arange(n * length * 2, dtype=torch.float32).reshape(n, length, 2)
    return Conditioning(
        text=values,
        text_mask=torch.arange(length).expand(n, -1) < length - 1 if masked else None,
        camera=torch.arange(n * 3, dtype=torch.float32).reshape(n, 3) if camera else None,
    )


def label_cond(labels: list[int], *, uncond: int = -1) -> Conditioning:
    return Conditioning(
        labels=torch.tensor(labels),
        uncond=Conditioning(labels=torch.full((len(labels),), uncond)),
    )


class RecordingDenoiser:
    """Another denoiser, and what it was asked."""

    def __init__(self, denoiser: MixtureDenoiser) -> None:
        self.denoiser = denoiser
        self.calls: list[tuple[Tensor, Tensor, Conditioning | None]] = []

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.calls.append((x_t, t, cond))
        return self.denoiser(x_t, t, cond)


# --- Conditioning ---------------------------------------------------------------------------


def test_expand_repeats_one_sample_everywhere() -> None:
    cond = replace(text_cond(1, 3, masked=True), uncond=text_cond(1, 2))
    four = cond.expand(4)
    assert four.batch_size == 4
    assert four.text is not None
    assert cond.text is not None
    assert torch.equal(four.text, cond.text.repeat(4, 1, 1))
    assert four.uncond is not None
    assert four.uncond.batch_size == 4
    assert four.expand(4) is four
    with pytest.raises(ValueError, match="expanded to 3"):
        four.expand(3)


def test_select_takes_samples_with_repeats() -> None:
    cond = replace(text_cond(3, 2, masked=True, camera=True), uncond=text_cond(3, 2))
    picked = cond.select(torch.tensor([2, 0, 2, 2]))
    assert picked.batch_size == 4
    for before, after in ((cond.text, picked.text), (cond.camera, picked.camera)):
        assert before is not None
        assert after is not None
        assert torch.equal(after, before[[2, 0, 2, 2]])
    assert cond.select(slice(1, 3)).batch_size == 2


def test_with_camera_reaches_uncond_unless_dropped() -> None:
    camera = torch.randn(4, 5)
    cond = replace(text_cond(1, 3), uncond=text_cond(1, 3)).with_camera(camera)
    assert cond.batch_size == 4
    assert cond.camera is camera
    assert cond.uncond is not None
    assert cond.uncond.camera is camera
    guided = cond.with_camera(camera, drop_in_uncond=True)
    assert guided.camera is camera
    assert guided.uncond is not None
    assert guided.uncond.camera is None
    assert guided.uncond.batch_size == 4
    assert cond.with_camera(None).camera is None


def test_to_casts_only_floating_point_fields() -> None:
    cond = replace(text_cond(2, 3, masked=True), labels=torch.tensor([0, 1])).to(
        "cpu", torch.float64
    )
    assert cond.text is not None
    assert cond.text.dtype == torch.float64
    assert cond.text_mask is not None
    assert cond.text_mask.dtype == torch.bool
    assert cond.labels is not None
    assert cond.labels.dtype == torch.long


def test_bad_conditionings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one field"):
        Conditioning()
    with pytest.raises(ValueError, match=r"sizes \[1, 2\]"):
        Conditioning(text=torch.zeros(2, 3, 4), labels=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"sizes \[1, 2\]"):
        replace(text_cond(2, 3), uncond=text_cond(1, 3))
    with pytest.raises(ValueError, match="text_mask"):
        Conditioning(text=torch.zeros(2, 3, 4), text_mask=torch.ones(2, 4, dtype=torch.bool))


def test_concatenate_pads_and_masks_shorter_texts() -> None:
    short, long = text_cond(2, 2), text_cond(1, 4, masked=True)
    both = concatenate([short, long])
    assert both.text is not None
    assert both.text_mask is not None
    assert both.text.shape == (3, 4, 2)
    assert both.text_mask.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, True, True, False],
    ]
    assert short.text is not None
    assert torch.equal(both.text[:2, :2], short.text)
    assert torch.equal(both.text[:2, 2:], torch.zeros(2, 2, 2))


def test_concatenate_equal_lengths_needs_no_mask() -> None:
    pair = [replace(text_cond(n, 3, camera=True), uncond=text_cond(n, 3)) for n in (1, 2)]
    both = concatenate(pair)
    assert both.text_mask is None
    assert both.batch_size == 3
    assert both.camera is not None
    assert both.camera.shape == (3, 3)
    assert both.uncond is not None
    assert both.uncond.batch_size == 3


def test_concatenate_refuses_a_field_present_in_some_only() -> None:
    pair = [text_cond(1, 3, camera=True), text_cond(1, 3)]
    assert not can_concatenate(pair)
    with pytest.raises(ValueError, match="same fields"):
        concatenate(pair)


# --- Classifier-free guidance ---------------------------------------------------------------


@pytest.fixture
def x_t(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def t() -> Tensor:
    return torch.linspace(0.1, 0.9, 5, dtype=torch.float64)


def test_guidance_is_the_formula_in_every_parametrisation(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, x_t: Tensor, t: Tensor
) -> None:
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    cond = label_cond([0, 1, 1, 0, 1])
    conditional, unconditional = denoiser(x_t, t, cond), denoiser(x_t, t, cond.uncond)
    guided = ClassifierFreeGuidance(denoiser, 4.5)(x_t, t, cond)
    for name in ("x0", "eps", "velocity", "v_prediction", "score"):
        with_, without = getattr(conditional, name), getattr(unconditional, name)
        expected = without + 4.5 * (with_ - without)
        torch.testing.assert_close(getattr(guided, name), expected, rtol=1e-9, atol=1e-9)


def test_guidance_is_affine_in_the_scale(
    mixture_2d: GaussianMixture, x_t: Tensor, t: Tensor
) -> None:
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    cond = label_cond([0, 1, 1, 0, 1])
    at = {s: ClassifierFreeGuidance(denoiser, s)(x_t, t, cond).x0 for s in (-1.0, 0.0, 1.0, 7.0)}
    torch.testing.assert_close(at[0.0], denoiser(x_t, t, cond.uncond).x0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(at[1.0], denoiser(x_t, t, cond).x0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(at[-1.0] + at[1.0], 2 * at[0.0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at[7.0] - at[0.0], 7 * (at[1.0] - at[0.0]), rtol=1e-12, atol=1e-12)


def test_guided_score_adds_the_classifiers_gradient(
    mixture_2d: GaussianMixture, x_t: Tensor, t: Tensor
) -> None:
    """score + s grad log p(y | x_t): the classifier being the mixture's exact posterior."""
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    labels = [0, 1, 1, 0, 1]
    x = x_t.clone().requires_grad_()
    posterior = mixture_2d.noised(schedule.alpha(t), schedule.sigma(t)).class_posterior(x)
    log_class = posterior[torch.arange(5), labels].log().sum()
    (gradient,) = torch.autograd.grad(log_class, x)
    guided = ClassifierFreeGuidance(denoiser, 3.0)(x_t, t, label_cond(labels))
    expected = denoiser(x_t, t).score + 3.0 * gradient
    torch.testing.assert_close(guided.score, expected, rtol=1e-10, atol=1e-10)


def test_guidance_takes_one_batched_call(
    mixture_2d: GaussianMixture, x_t: Tensor, t: Tensor
) -> None:
    denoiser = RecordingDenoiser(MixtureDenoiser(mixture_2d, FlowSchedule()))
    one = label_cond([1])
    guided = ClassifierFreeGuidance(denoiser, 2.0)(x_t, t, one)
    (asked_x, asked_t, asked_cond) = denoiser.calls[0]
    assert len(denoiser.calls) == 1
    assert len(asked_x) == len(asked_t) == 10
    assert asked_cond is not None
    assert asked_cond.labels is not None
    assert asked_cond.labels.tolist() == [1] * 5 + [-1] * 5
    assert asked_cond.uncond is None
    assert guided.x_t.shape == x_t.shape


def test_guidance_with_a_dropped_camera_takes_two_calls(
    mixture_2d: GaussianMixture, x_t: Tensor, t: Tensor
) -> None:
    denoiser = RecordingDenoiser(MixtureDenoiser(mixture_2d, FlowSchedule()))
    batched = label_cond([0, 1, 1, 0, 1])
    apart = batched.with_camera(torch.zeros(5, 2), drop_in_uncond=True)
    guided = ClassifierFreeGuidance(denoiser, 2.0)(x_t, t, apart)
    assert [len(x) for x, _, _ in denoiser.calls] == [5, 5]
    expected = ClassifierFreeGuidance(denoiser, 2.0)(x_t, t, batched)
    torch.testing.assert_close(guided.x0, expected.x0)


@pytest.mark.parametrize("cond", [None, Conditioning(labels=torch.tensor([0]))])
def test_guidance_without_uncond_is_refused(
    mixture_2d: GaussianMixture, cond: Conditioning | None
) -> None:
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    x, t = torch.zeros(1, 2, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"ClassifierFreeGuidance needs cond\.uncond"):
        ClassifierFreeGuidance(denoiser, 2.0)(x, t, cond)


# --- Perp-Neg -------------------------------------------------------------------------------


def perp_neg(
    denoiser: MixtureDenoiser | RecordingDenoiser, negatives: list[int], weights: Tensor
) -> PerpNegGuidance:
    return PerpNegGuidance(
        denoiser,
        3.0,
        [Conditioning(labels=torch.tensor([label])) for label in negatives],
        weights,
    )


@pytest.fixture
def three_classes(mixture_2d: GaussianMixture) -> MixtureDenoiser:
    return MixtureDenoiser(replace(mixture_2d, labels=torch.arange(3)), FlowSchedule())


def test_perp_neg_is_the_papers_formula(
    three_classes: MixtureDenoiser, x_t: Tensor, t: Tensor
) -> None:
    cond = label_cond([0] * 5)
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guided = perp_neg(three_classes, [1, 2], weights)(x_t, t, cond)

    def eps(label: int) -> Tensor:
        return three_classes(x_t, t, Conditioning(labels=torch.full((5,), label))).eps

    for sample in range(5):
        base = eps(-1)[sample]
        positive = eps(0)[sample] - base
        direction = positive.clone()
        for row, label in enumerate((1, 2)):
            negative = eps(label)[sample] - base
            along = (negative @ positive) / (positive @ positive) * positive
            direction -= weights[row, sample] * (negative - along)
        torch.testing.assert_close(guided.eps[sample], base + 3.0 * direction, rtol=1e-9, atol=1e-9)


def test_a_negative_equal_to_the_positive_changes_nothing(
    three_classes: MixtureDenoiser, x_t: Tensor, t: Tensor
) -> None:
    cond = label_cond([0] * 5)
    plain = ClassifierFreeGuidance(three_classes, 3.0)(x_t, t, cond).x0
    same = perp_neg(three_classes, [0], torch.ones(1, dtype=torch.float64))(x_t, t, cond).x0
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-12)
    unweighted = perp_neg(three_classes, [1], torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(unweighted(x_t, t, cond).x0, plain, rtol=1e-12, atol=1e-12)
    weighted = perp_neg(three_classes, [1], torch.ones(1, dtype=torch.float64))(x_t, t, cond).x0
    assert not torch.allclose(weighted, plain, atol=1e-3)


def test_perp_neg_where_the_prompt_changes_nothing_is_finite(
    three_classes: MixtureDenoiser, x_t: Tensor, t: Tensor
) -> None:
    nothing = label_cond([-1] * 5)
    guided = perp_neg(three_classes, [1], torch.ones(1, dtype=torch.float64))(x_t, t, nothing)
    assert bool(torch.isfinite(guided.x0).all())


def test_perp_neg_takes_one_batched_call(
    three_classes: MixtureDenoiser, x_t: Tensor, t: Tensor
) -> None:
    denoiser = RecordingDenoiser(three_classes)
    perp_neg(denoiser, [1, 2], torch.ones(2, dtype=torch.float64))(x_t, t, label_cond([0] * 5))
    assert [len(x) for x, _, _ in denoiser.calls] == [20]


def test_perp_neg_refuses_weights_of_another_count(three_classes: MixtureDenoiser) -> None:
    with pytest.raises(ValueError, match=r"shape \[1\] or \[1, B\]"):
        perp_neg(three_classes, [1], torch.ones(2))
