"""What the solvers in half log-SNR share: the DDIM step of any given x0 or eps, and histories.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t, and a prediction held constant over a
step, the probability-flow ODE is solved exactly (DPM-Solver, arXiv 2206.00927, and
DPM-Solver++, arXiv 2211.01095):

    x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) eps
        = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) x0.

Solvers of higher order add differences of predictions to it. Where lambda is infinite there is
nothing to difference: a step that touches such an end is a DDIM step, and a prediction made
there is left out of histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample

__all__ = ["half_log_snr", "hold_eps", "hold_x0", "is_finite_step", "remember", "t_of_half_log_snr"]


def half_log_snr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """lambda = log(alpha / sigma), of t's shape."""
    return schedule.log_snr(t) / 2


def t_of_half_log_snr(schedule: NoiseSchedule, half: Tensor) -> Tensor:
    """The inverse of half_log_snr."""
    return schedule.t_of_log_snr(2 * half)


def is_finite_step(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> bool:
    """Whether lambda is finite at both ends of the step, for all samples [B]."""
    return bool((torch.isfinite(schedule.log_snr(t)) & torch.isfinite(schedule.log_snr(s))).all())


def hold_eps(schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x [B, ...] at t [B] to s [B] with eps [B, ...] constant on the way; lambda_t is finite."""
    scale = schedule.alpha(s) / schedule.alpha(t)
    change = schedule.sigma(s) - schedule.sigma(t) * scale
    return per_sample(scale, x) * x + per_sample(change, x) * eps


def hold_x0(schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x [B, ...] at t [B] to s [B] with x0 [B, ...] constant on the way; sigma_t is not 0."""
    scale = schedule.sigma(s) / schedule.sigma(t)
    change = schedule.alpha(s) - schedule.alpha(t) * scale
    return per_sample(scale, x) * x + per_sample(change, x) * x0


def remember(
    history: tuple[Prediction, ...], prediction: Prediction, length: int
) -> tuple[Prediction, ...]:
    """The last `length` predictions, the newest first; those of infinite lambda are left out."""
    if not bool(torch.isfinite(prediction.schedule.log_snr(prediction.t)).all()):
        return history[:length]
    return (prediction, *history)[:length]
