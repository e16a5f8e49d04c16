"""DDIM inversion: the noise from which a denoiser would have made an image."""

from __future__ import annotations

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import noise_like, per_sample
from core.solvers.ddim import ddim_coefficients, ddim_step

__all__ = ["START", "ddim_invert"]

START = 0.02
"""The least time at which a denoiser is asked for the noise of an image."""


@torch.no_grad()
def ddim_invert(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    cond: Conditioning | None = None,
    *,
    steps: int,
    start: float = START,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x [B, ...] carried along the probability-flow ODE to the times t [B], each its own.

    `steps` DDIM steps of equal length in t, the first from `start` (or from t, where that is
    earlier): a denoiser cannot say the noise of an image that has none, so x is taken to
    alpha(start) x there, which differs from the ODE by sigma(start)^2 only. Of first order in the
    step's length. eta > 0 adds eta times the standard deviation of DDPM's step after each (SDI's
    inversion_eta), drawn from `generator`.
    """
    if steps < 1:
        raise ValueError(f"Inversion needs at least one step, got {steps}.")
    if eta > 0 and generator is None:
        raise ValueError("Inversion with eta > 0 draws noise. Pass a generator, or set eta=0.")
    schedule = denoiser.schedule
    first = t.clamp(max=start)
    s = first
    x_s = per_sample(schedule.alpha(s), x) * x
    for step in range(1, steps + 1):
        after = first + (t - first) * (step / steps)
        x_s = ddim_step(denoiser(x_s, s, cond), after)
        if eta > 0 and generator is not None:
            _, _, fresh = ddim_coefficients(schedule, after, s, eta)
            x_s = x_s + per_sample(fresh, x) * noise_like(x, generator)
        s = after
    return x_s
