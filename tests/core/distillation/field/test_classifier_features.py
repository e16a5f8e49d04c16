"""Classifier-based feature distillation: what it sees, what it does not, and its closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from core.distillation.field.classifier_features import (
    ClassifierFeatureDistillation,
    mixture_classifier,
)
from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, ring_mixture
from core.mixture import GaussianMixture
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample
from core.training import train


@pytest.fixture
def ground() -> Ground:
    return mixture_ground(ring_mixture())


@pytest.mark.parametrize("compare", ["kl", "l2"])
def test_it_is_blind_to_the_features_kernel(
    ground: Ground, compare: str, generator: torch.Generator
) -> None:
    """Features of x alone: any y will do."""
    seen = torch.tensor([[1.0, -0.5, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def classifier(x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ seen, x @ seen

    method = ClassifierFeatureDistillation(
        ground,
        classifier=classifier,
        compare="kl" if compare == "kl" else "l2",
        dataset_weight=0.1,
        steps=4,
    )
    x0, target = torch.randn(2, 50, 2, generator=generator, dtype=torch.float64)
    t = 0.1 + 0.9 * torch.rand(50, generator=generator, dtype=torch.float64)
    loss = method.distance(x0, target, t)
    unseen = x0 + torch.tensor([0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(method.distance(unseen, target, t), loss, rtol=0, atol=1e-14)
    seen_shift = x0 + torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert abs(method.distance(seen_shift, target, t) - loss) > 0.1


def test_with_x0_for_features_it_is_progressive_distillation(ground: Ground) -> None:
    losses = []
    for make in (
        lambda: ProgressiveDistillation(ground, steps=4),
        lambda: ClassifierFeatureDistillation(
            ground, classifier=lambda x: (x, x), compare="l2", steps=4
        ),
    ):
        torch.manual_seed(0)
        losses.append(make().loss(torch.Generator().manual_seed(1)))
    assert torch.equal(*losses)


def test_the_divergence_and_its_regularisers_are_the_closed_forms(ground: Ground) -> None:
    """Two samples of two classes, by hand; the target is sharpened, the student is not."""

    def classifier(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    p, q = torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    plain = ClassifierFeatureDistillation(ground, classifier=classifier, temperature=0.5, steps=4)
    sharp = q**2 / (q**2).sum(1, keepdim=True)
    divergence = (sharp * (sharp / p).log()).sum(1).mean()
    t = torch.ones(2)
    torch.testing.assert_close(plain.distance(p.log(), q.log(), t), divergence)
    regular = ClassifierFeatureDistillation(
        ground,
        classifier=classifier,
        temperature=0.5,
        dataset_weight=2.0,
        entropy_share=0.25,
        steps=4,
    )
    entropy = -(p * p.log()).sum(1).mean()
    mean = p.mean(0)
    diversity = -(mean * mean.log()).sum()
    expected = divergence + 2 * (0.25 * entropy - 0.75 * diversity)
    torch.testing.assert_close(regular.distance(p.log(), q.log(), t), expected)
    # The least possible: each draw sure of its class, the classes drawn alike.
    sure = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    least = regular.distance(sure, sure * 0.5, t)
    assert least.item() == pytest.approx(2 * -0.75 * math.log(2), abs=1e-5)


def test_sharpening_linear_features_is_stretching(
    ground: Ground, generator: torch.Generator
) -> None:
    """The ring's modes are alike, so that their log posteriors are linear but for a constant."""
    uniform = GaussianMixture(
        weights=torch.ones(6, dtype=torch.float64),
        means=ring_mixture().means.double(),
        covariances=ring_mixture().covariances.double(),
    )
    method = ClassifierFeatureDistillation(
        ground, classifier=mixture_classifier(uniform), temperature=0.8, steps=4
    )
    target = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    t = torch.ones(50, dtype=torch.float64)
    assert abs(method.distance(target / 0.8, target, t).item()) < 1e-14
    assert method.distance(target, target, t).item() > 1e-3


def test_the_mixtures_classifier_is_its_posterior(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    logits, features = mixture_classifier(mixture_2d, noise_std=0.4)(x)
    ones = torch.ones(100, dtype=torch.float64)
    noised = mixture_2d.noised(ones, 0.4 * ones)
    torch.testing.assert_close(logits.exp(), noised.class_posterior(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(features, noised.log_component_posterior(x))


def test_few_steps_keep_the_teachers_classes(ground: Ground) -> None:
    classifier = mixture_classifier(ring_mixture())
    torch.manual_seed(0)
    method = ClassifierFeatureDistillation(
        ground, classifier=classifier, teacher_steps=8, nfe=4, steps=300, learning_rate=5e-3
    )
    generator = torch.Generator().manual_seed(5)
    z = method.noise(1000, generator)
    many = sample(ground.teacher, DDIM(), ground.grid(8), z).x

    def compare() -> tuple[float, float]:
        """How many have the teacher's class, and how much further out they are."""
        with torch.no_grad():
            made = method.sample(z, 4, None, generator)[-1]
        same = classifier(made)[0].argmax(1) == classifier(many)[0].argmax(1)
        return float(same.float().mean()), float(made.norm(dim=1).mean() / many.norm(dim=1).mean())

    assert compare()[0] < 0.85
    train(method)
    agreement, stretch = compare()
    assert agreement > 0.9
    # The modes are alike, so that their log posteriors are linear: sharpened by 0.9.
    assert stretch == pytest.approx(1 / 0.9, abs=0.06)


def test_settings_out_of_range_are_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="temperature > 0"):
        ClassifierFeatureDistillation(ground, classifier=lambda x: (x, x), temperature=0.0, steps=4)
