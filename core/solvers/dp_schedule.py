"""The best K times of a grid by dynamic programming (arXiv 2106.03802).

The evidence bound of DDPM's sampling is a sum of one KL divergence a step, so the K steps that
make it largest are a shortest path over the grid, found exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import NoiseSchedule, diffuse, noise_like

__all__ = ["DPSchedule", "dp_schedule", "kl_costs", "x0_squared_error"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DPSchedule:
    """A path of K steps over a grid of N times, and what it costs."""

    indices: Tensor
    """[K + 1] rising, from 0 to N - 1: times[indices] is what `sample` takes."""
    total: float
    """The sum of the steps' costs."""


@torch.no_grad()
def x0_squared_error(
    denoiser: Denoiser,
    data: Tensor,
    times: Tensor,
    generator: torch.Generator,
    cond: Conditioning | None = None,
) -> Tensor:
    """E |x0 - D(x_t, t)|^2, summed over a sample's dimensions [N], at times [N].

    By Monte Carlo over data [M, ...], all of which each time noises once.
    """
    means = []
    for time in times.to(data.device):
        t = time.expand(len(data))
        x_t = diffuse(denoiser.schedule, data, noise_like(data, generator), t)
        squared = (denoiser(x_t, t, cond).x0 - data).square()
        means.append(squared.flatten(1).sum(1).mean().to(times))
    return torch.stack(means)


def kl_costs(schedule: NoiseSchedule, times: Tensor, squared_error: Tensor) -> Tensor:
    """The KL divergence, in nats, of a step from times[i] to times[j] [N, N], for times falling.

    squared_error  [N], as `x0_squared_error` estimates it, or exact

    q(x_s | x_t, x0) and DDPM's p(x_s | x_t), the same with D for x0, are Gaussians of one
    variance, hence KL = (SNR_s - SNR_t) / 2 E |x0 - D(x_t, t)|^2; infinite for j <= i, where
    there is no step. What the bound has besides (the prior, and the data given the last x) does
    not hang on the path. Raises ValueError for a time where sigma is 0: the KL is infinite.
    """
    if times.ndim != 1 or times.shape != squared_error.shape or bool((times.diff() >= 0).any()):
        raise ValueError("kl_costs needs times [N] that fall strictly, and one error for each.")
    snr = torch.exp(schedule.log_snr(times))
    if not bool(torch.isfinite(snr).all()):
        raise ValueError(
            "The KL divergence of a step to sigma = 0 is infinite. End the grid at a later time."
        )
    gain = (snr[None, :] - snr[:, None]) / 2 * squared_error.to(snr)[:, None]
    return torch.where(gain.new_ones(gain.shape).triu(1) > 0, gain, torch.inf)


def dp_schedule(costs: Tensor, steps: int) -> DPSchedule:
    """The cheapest path of exactly `steps` steps from the grid's first time to its last.

    costs  [N, N], of a step from i to j, read for j > i only; infinite where there is none

    C[k, r] = min over s of C[k-1, s] + costs[s, r]. Raises ValueError if there is no such path.
    """
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f"costs must have shape [N, N], got {list(costs.shape)}.")
    if not 1 <= steps < len(costs):
        raise ValueError(
            f"A grid of {len(costs)} times has paths of 1 to {len(costs) - 1} steps, got {steps}."
        )
    forward = torch.where(costs.new_ones(costs.shape).triu(1) > 0, costs, torch.inf)
    if bool(torch.isnan(forward).any()):
        raise ValueError("costs holds NaN. Look for a denoiser that diverged.")
    reached = torch.full_like(costs[0], torch.inf)
    reached[0] = 0
    came_from = []
    for _ in range(steps):
        reached, origin = (reached[:, None] + forward).min(0)
        came_from.append(origin)
    if bool(torch.isinf(reached[-1])):
        raise ValueError(f"No path of {steps} steps leads to the last time at a finite cost.")
    path = [len(costs) - 1]
    for origin in reversed(came_from):
        path.append(int(origin[path[-1]]))
    return DPSchedule(indices=torch.tensor(path[::-1]), total=reached[-1].item())
