"""Polynomials through values of eps at any times, and the ODE integrated along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.schedule import NoiseSchedule, per_sample
from core.solvers.exponential import half_log_snr, t_of_half_log_snr

__all__ = ["Variable", "check_variable", "integrate_eps", "lagrange", "place"]

Variable = Literal["t", "r", "log_snr"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def check_variable(solver: str, variable: Variable) -> None:
    """Raises ValueError, in the name of `solver`, for what is no variable of a polynomial."""
    if variable not in ("t", "r", "log_snr"):
        raise ValueError(f'{solver}\'s variable must be "t", "r" or "log_snr", got {variable!r}.')


def place(schedule: NoiseSchedule, half: Tensor, variable: Variable) -> Tensor:
    """Where lambda = `half` lies in the polynomial's variable: t, r = sigma / alpha, or lambda."""
    match variable:
        case "t":
            return t_of_half_log_snr(schedule, half)
        case "r":
            return torch.exp(-half)
        case "log_snr":
            return half


def lagrange(knots: Sequence[Tensor], where: Tensor) -> list[Tensor]:
    """L_j(where), 1 at knot j and 0 at the others, for M different knots [B] and where [..., B]."""
    bases = []
    for j, own in enumerate(knots):
        basis = torch.ones_like(where)
        for i, knot in enumerate(knots):
            if i != j:
                basis = basis * (where - knot) / (own - knot)
        bases.append(basis)
    return bases


def integrate_eps(
    schedule: NoiseSchedule,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    knots: Sequence[Tensor],
    values: Sequence[Tensor],
    variable: Variable,
) -> Tensor:
    """x [B, ...] at t [B] to s [B] along the polynomial with `values` [B, ...] at `knots` [B].

    With r = sigma / alpha, x_s = (alpha_s/alpha_t) x_t + alpha_s sum_j eps_j int L_j dr from t to
    s (DEIS, arXiv 2204.13902); the integrals are computed by 16 Gauss-Legendre nodes in log r.
    lambda is finite at both ends.
    """
    half_t, half_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
    nodes = torch.as_tensor((_NODES + 1) / 2, dtype=t.dtype, device=t.device)[:, None]
    weights = torch.as_tensor(_WEIGHTS / 2, dtype=t.dtype, device=t.device)[:, None]
    halves = half_t + nodes * (half_s - half_t)
    # dr = -r d lambda, and alpha_s r written so that it does not overflow.
    measure = weights * (half_t - half_s) * schedule.sigma(s) * torch.exp(half_s - halves)
    x_s = per_sample(schedule.alpha(s) / schedule.alpha(t), x) * x
    for basis, value in zip(
        lagrange(knots, place(schedule, halves, variable)), values, strict=True
    ):
        x_s = x_s + per_sample((measure * basis).sum(0), x) * value
    return x_s
