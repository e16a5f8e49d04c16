"""The kinds of students: what a network's raw output means, and how a student is sampled.

| student             | contract  | one call goes                    | sampled by               |
|---------------------|-----------|----------------------------------|--------------------------|
| NetworkDenoiser     | Denoiser  | x_t to (x0, eps) at t            | any solver               |
| DDIMFlowMap         | FlowMap   | x_t to x_s, through an x0        | jumps t > s > ... > 0    |
| VelocityFlowMap     | FlowMap   | x_t to x_s, by a mean velocity   | jumps                    |
| ConsistencyFunction | FlowMap   | x_t to x_0, exact at t_min       | jumps and fresh noise    |
| generator           | Generator | z to x                           | one call                 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.networks import Network
from core.prediction import Parametrisation, Prediction
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample
from core.solvers.ddim import ddim_step
from core.solvers.sampling import Solver, sample

__all__ = [
    "ConsistencyFunction",
    "DDIMFlowMap",
    "FlowMap",
    "Generator",
    "NetworkDenoiser",
    "VelocityFlowMap",
    "sample_by_jumps",
    "sample_by_noising",
    "sample_by_solver",
]


class FlowMap(Protocol):
    """x_t [B, ...] at t [B] to x_s at s [B], s <= t; with s = 0 alone a consistency function."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> Tensor: ...


class Generator(Protocol):
    """z [B, ...] to x [B, ...]; z may have another dimension than x."""

    def __call__(self, z: Tensor, cond: Conditioning | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network whose output is one parametrisation of a Prediction; a Denoiser."""

    network: Network
    schedule: NoiseSchedule
    parametrisation: Parametrisation = Parametrisation.V_PREDICTION

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        value = self.network(x_t, t, cond=cond)
        return Prediction(value, self.parametrisation, x_t, t, self.schedule)


@dataclass(frozen=True, eq=False)
class DDIMFlowMap:
    """x_s = alpha_s g + (sigma_s / sigma_t) (x_t - alpha_t g), g = network(x_t, t, s).

    A DDIM step on the network's own x0 (CTM, arXiv 2310.02279, Eq. 9, is the case alpha = 1):
    the identity at s = t whatever the network says, and g itself at s = 0 where sigma_0 = 0.
    Needs sigma_t > 0.
    """

    network: Network
    schedule: NoiseSchedule

    def clean(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None) -> Tensor:
        """g [B, ...]; as s goes to t it is the denoiser's x0."""
        return self.network(x_t, t, s, cond)

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        clean = self.clean(x_t, t, s, cond)
        return ddim_step(Prediction.from_x0(clean, x_t, t, self.schedule), s)


@dataclass(frozen=True, eq=False)
class VelocityFlowMap:
    """x_s = x_t + (s - t) u(x_t, t, s), u the mean velocity from s to t.

    For MeanFlow (arXiv 2505.13447, Eq. 3) and shortcut models (arXiv 2410.12557); s = t gives the
    velocity itself.
    """

    network: Network
    schedule: NoiseSchedule

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        return x_t + per_sample(s - t, x_t) * self.network(x_t, t, s, cond)


@dataclass(frozen=True, eq=False)
class ConsistencyFunction:
    """f(x, t) = c_skip x + c_out F(x, t), with f(x, t_min) = x exactly.

    arXiv 2303.01469, Eq. 5 and Appendix C, over any schedule: with the noise-to-signal ratio
    r = sigma/alpha, r_min that of t_min and y = x / alpha,
    c_skip = d^2 / ((r - r_min)^2 + d^2) on y, c_out = d (r - r_min) / sqrt(d^2 + r^2), and
    d = `data_std`. The answer is x0 at t_min's noise level, so take t_min small.
    """

    network: Network
    schedule: NoiseSchedule
    t_min: float
    data_std: float = 0.5

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        """The end of x_t's trajectory [B, ...]; `s` is read by no one: it is always t_min.

        The end t = 1 of a schedule with alpha(1) = 0 has the limits c_skip y = 0, c_out = d.
        """
        d = self.data_std
        start = torch.full_like(t, self.t_min)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        r_min = self.schedule.sigma(start) / self.schedule.alpha(start)
        # Everything times alpha, so that alpha = 0 is no exception.
        excess = sigma - r_min * alpha
        skip = d**2 * alpha / (excess.square() + (d * alpha).square())
        out = d * excess / torch.sqrt((d * alpha).square() + sigma.square())
        raw = self.network(x_t, t, cond=cond)
        # At t_min itself c_skip y is x / alpha_min; the factor brings back x exactly.
        scale = self.schedule.alpha(start)
        return per_sample(scale * skip, x_t) * x_t + per_sample(scale * out, x_t) * raw


def sample_by_solver(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    times: Tensor,
    cond: Conditioning | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """All states of a solver's run through `times` [N + 1]."""
    return list(sample(denoiser, solver, times, x, cond, generator).states)


def sample_by_jumps(
    flow_map: FlowMap, x: Tensor, times: Tensor, cond: Conditioning | None = None
) -> list[Tensor]:
    """x at times[0], then one call of the map from each time to the next; N + 1 states."""
    states = [x]
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        ones = torch.ones(len(x), device=x.device, dtype=x.dtype)
        states.append(flow_map(states[-1], t * ones, s * ones, cond))
    return states


def sample_by_noising(
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    cond: Conditioning | None,
    generator: torch.Generator,
) -> list[Tensor]:
    """Consistency sampling (arXiv 2303.01469, Algorithm 1): to x0, noised to the next time, again.

    `times` [N + 1] fall to the data's end; N calls, N + 1 states of which the last is an x0.
    """
    ones = torch.ones(len(x), device=x.device, dtype=x.dtype)
    end = times[-1].item() * ones
    states = [x]
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x0 = flow_map(states[-1], t * ones, end, cond)
        last = s == times[-1].item()
        noised = x0 if last else diffuse(flow_map.schedule, x0, noise_like(x0, generator), s * ones)
        states.append(noised)
    return states
