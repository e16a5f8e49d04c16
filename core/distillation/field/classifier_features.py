"""Classifier-based feature distillation: progressive rounds judged in a classifier's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.mixture import GaussianMixture

__all__ = ["ClassifierFeatureDistillation", "mixture_classifier"]


def mixture_classifier(
    mixture: GaussianMixture, noise_std: float = 1.0
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The exact classifier of a mixture's draws with noise of `noise_std` added.

    x [B, D] to log p(label | x) [B, C] and, as features, log p(component | x) [B, K]. Noise as
    wide as the modes' distances keeps the features from saturating, where they no longer say
    how far x is from a mode.
    """

    def classify(x: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.ones(len(x), dtype=mixture.means.dtype)
        noised = mixture.noised(alpha, noise_std * alpha)
        components = noised.log_component_posterior(x.to(mixture.means.dtype))
        # log p(label) sums over components in the log, where a far class does not underflow.
        of_label = mixture.labels == torch.arange(int(mixture.labels.max()) + 1)[:, None]
        classes = torch.logsumexp(
            torch.where(of_label, components[:, None], torch.finfo(components.dtype).min), 2
        )
        return classes.to(x.dtype), components.to(x.dtype)

    return classify


class ClassifierFeatureDistillation(ProgressiveDistillation):
    """KL(softmax(h(x~) / tau) || softmax(h(D(x_t)))) + regularisers (arXiv 2211.12039).

    Progressive distillation whose x~ and x0 are compared through a classifier's features h,
    the target's sharpened by tau < 1. The regularisers read the classifier's logits of the
    student: dataset_weight [(1 - beta) (-H(mean p)) + beta mean H(p)], each draw sure of its
    class and all classes drawn. They are off by default (dataset_weight 0).

    What h does not see is not trained: a saturated classifier lets samples drift outward. And
    where h is linear, sharpening is a shift of its own: the loss is zero at x0 = x~ / tau.
    """

    card = MethodCard(
        name="cfd",
        title="Classifier-based feature distillation",
        family=Family.OUTPUT,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA, Needs.CLASSIFIER}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2211.12039",
        idea="Compare what student and teacher make by what a classifier sees in it.",
        equation="KL(softmax h(x~)/tau || softmax h(D(x_t))) + w (entropy + diversity), w = 0",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        classifier: Callable[[Tensor], tuple[Tensor, Tensor]],
        compare: Literal["kl", "l2"] = "kl",
        temperature: float = 0.9,
        dataset_weight: float = 0.0,
        entropy_share: float = 0.5,
        teacher_steps: int = 16,
        nfe: int = 1,
        **settings: Unpack[Settings],
    ) -> None:
        """CFD; see the class.

        Args:
            ground: Where to train.
            classifier: x0 [B, ...] to (logits [B, C], features [B, F]), differentiable; frozen.
            compare: "l2" is the plain squared distance of the features, weighted as
                progressive distillation's: with features x0 itself it is that method.
            temperature: tau, of the target only.
            dataset_weight: Of both regularisers.
            entropy_share: beta.
            teacher_steps, nfe: As in ProgressiveDistillation.
            settings: As in Settings.
        """
        super().__init__(ground, teacher_steps=teacher_steps, nfe=nfe, **settings)
        if temperature <= 0 or dataset_weight < 0 or not 0 <= entropy_share <= 1:
            raise ValueError(
                "CFD needs temperature > 0, dataset_weight >= 0 and entropy_share in [0, 1], got "
                f"{temperature}, {dataset_weight} and {entropy_share}."
            )
        self.classifier = classifier
        self.compare = compare
        self.temperature = temperature
        self.dataset_weight = dataset_weight
        self.entropy_share = entropy_share

    def distance(self, x0: Tensor, target: Tensor, t: Tensor) -> Tensor:
        logits, features = self.classifier(x0)
        with torch.no_grad():
            _, wanted = self.classifier(target)
        if self.compare == "l2":
            loss = super().distance(features, wanted, t)
        else:
            log_p = functional.log_softmax(features, 1)
            log_wanted = functional.log_softmax(wanted / self.temperature, 1)
            loss = (log_wanted.exp() * (log_wanted - log_p)).sum(1).mean()
        if self.dataset_weight == 0:
            return loss
        # log p of each draw's classes, and of their mean over the batch.
        log_p = functional.log_softmax(logits, 1)
        log_mean = torch.logsumexp(log_p, 0) - torch.log(torch.tensor(float(len(x0))))
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        diversity = -(log_mean.exp() * log_mean).sum()
        share = self.entropy_share
        return loss + self.dataset_weight * (share * entropy - (1 - share) * diversity)
