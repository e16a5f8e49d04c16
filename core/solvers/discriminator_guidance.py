"""Discriminator guidance: a wrong score repaired by a discriminator (arXiv 2211.17091)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample

__all__ = ["Discriminator", "DiscriminatorGuidance", "discriminator_loss"]


class Discriminator(Protocol):
    """x_t [B, ...] and t [B], to the logit of its being noised data, not a noised sample [B].

    The logit is log(d / (1 - d)) for a probability d; it is differentiable in x_t.
    """

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class DiscriminatorGuidance:
    """score + weight grad log(d / (1 - d)); a Denoiser.

    The best discriminator between noised data p_t and noised samples q_t of the denoiser has
    d / (1 - d) = p_t / q_t, so that weight = 1 gives the score of p_t. The gradient is taken
    under torch.no_grad() too, and is itself a constant: none flows through it.

    The prediction is one of eps, from which x0 cannot be read where alpha is 0: start inside that
    end.
    """

    denoiser: Denoiser
    discriminator: Discriminator
    weight: float = 1.0

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            logit = self.discriminator(leaf, t, cond)
            (gradient,) = torch.autograd.grad(logit.sum(), leaf)
        eps = self.denoiser(x_t, t, cond).eps
        correction = per_sample(self.weight * self.schedule.sigma(t), x_t) * gradient
        return Prediction.from_eps(eps - correction, x_t, t, self.schedule)


def discriminator_loss(real_logits: Tensor, sample_logits: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B] for noised data and [B] for noised samples, at one t each.

    With as many of one as of the other its minimum over discriminators is at log(p_t / q_t).
    """
    return (
        torch.nn.functional.softplus(-real_logits).mean()
        + torch.nn.functional.softplus(sample_logits).mean()
    ) / 2
