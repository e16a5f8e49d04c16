"""The adversarial player's losses: logistic, so that the best critic knows the density ratio.

A critic is any network of a ground; the mean of its output over a sample is the logit. For
samples of p (real) and q (fake) the discriminator's loss is least at log p/q, where it is
2 log 2 - 2 JSD(p, q) (arXiv 1406.2661, Theorem 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from core.denoiser import Conditioning
from core.networks import Network

__all__ = ["critic_logits", "discriminator_loss", "generator_loss", "gradient_penalty"]


def critic_logits(
    critic: Network,
    x: Tensor,
    t: Tensor,
    cond: Conditioning | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """[B]: the mean of the critic's output for each of x [B, ...] at t [B].

    `start` [B], for critics of two times, is the level from which a sample was made.
    """
    return critic(x, t, start, cond).flatten(1).mean(1)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log sigmoid(real) - E log(1 - sigmoid(fake))."""
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log sigmoid(fake), the form that does not saturate."""
    return softplus(-fake_logits).mean()


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """R1 (arXiv 1801.04406): E |d logit / d inputs|^2 [], differentiable; inputs require grad."""
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()
