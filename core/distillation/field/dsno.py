"""DSNO: one network call for the whole trajectory, mixed over time in the Fourier domain."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.trajectories import TrajectoryPool
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.solvers.heun import Heun
from core.training import Stage

__all__ = ["DSNO", "TemporalFourierLayer", "TrajectoryNetwork"]


class TemporalFourierLayer(nn.Module):
    """h [B, M, C] over M points in time to the same: a convolution over all of them.

    h + SiLU(bias + irfft(R rfft(h))), R complex [modes, C, C], frequencies beyond `modes` dropped
    (the Fourier layer of arXiv 2010.08895 along time alone, as in arXiv 2211.13449, Section 3).
    """

    def __init__(self, channels: int, points: int, *, modes: int | None = None) -> None:
        super().__init__()
        most = points // 2 + 1
        self.modes = most if modes is None else modes
        if not 1 <= self.modes <= most:
            raise ValueError(f"{points} points have 1 to {most} modes, got {modes}.")
        # Real and imaginary parts apart: averages and checkpoints keep to real tensors.
        self.weight = nn.Parameter(torch.randn(2, self.modes, channels, channels) / channels)
        self.bias = nn.Parameter(torch.zeros(channels))

    def convolve(self, h: Tensor) -> Tensor:
        """The linear part, irfft(R rfft(h)) [B, M, C]."""
        points = h.shape[1]
        spectrum = torch.fft.rfft(h, dim=1)[:, : self.modes]
        mixed = torch.einsum("bmc,mcd->bmd", spectrum, torch.complex(*self.weight))
        return torch.fft.irfft(mixed, n=points, dim=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + nn.functional.silu(self.convolve(h) + self.bias)


class TrajectoryNetwork(nn.Module):
    """x_T [B, ...] to its states at `times` [M], [B, M, ...], in one parallel call.

    A backbone (a core.networks.Network with one time) is asked for every point at once; its
    answers and x_T are lifted to `channels`, mixed over time by `layers` TemporalFourierLayers,
    and added to the backbone's answer.
    """

    def __init__(
        self, backbone: nn.Module, size: int, times: Tensor, *, channels: int = 32, layers: int = 2
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.times: Tensor
        self.register_buffer("times", times)
        self.lift = nn.Linear(2 * size, channels)
        self.mix = nn.Sequential(
            *(TemporalFourierLayer(channels, len(times)) for _ in range(layers))
        )
        self.project = nn.Linear(channels, size)

    def forward(self, x_T: Tensor, cond: Conditioning | None = None) -> Tensor:
        batch, points = len(x_T), len(self.times)
        repeated = x_T.repeat_interleave(points, dim=0)
        index = torch.arange(batch, device=x_T.device).repeat_interleave(points)
        each = None if cond is None else cond.select(index)
        answer = self.backbone(repeated, self.times.to(x_T.dtype).repeat(batch), cond=each)
        h = torch.cat([answer.flatten(1), repeated.flatten(1)], dim=1)
        h = self.mix(self.lift(h).reshape(batch, points, -1))
        answer = answer.reshape(batch, points, *x_T.shape[1:])
        return answer + self.project(h).reshape(answer.shape)


class DSNO(Distillation):
    """sum_j w_j |G(x_T)(t_j) - x_{t_j}|, all t_j in one call (Zheng et al., arXiv 2211.13449).

    The states are a deterministic sampler's. The weights are 1 but for the last point, the
    sample, which counts as much as all others.

    Args:
        points: M, at uniform times below t_max, the last t_min.
        steps_per_point: Of Heun, between two points.
        trajectories: Made once, before training.
    """

    card = MethodCard(
        name="dsno",
        title="DSNO",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2211.13449",
        idea="An operator from the noise to the whole trajectory, at all times in parallel.",
        equation="sum_j w_j |G(x_T)(t_j) - x_tj|",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        points: int = 4,
        steps_per_point: int = 8,
        trajectories: int = 8192,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if points < 1 or steps_per_point < 1:
            raise ValueError(
                f"points and steps_per_point must be at least 1, got {points} and "
                f"{steps_per_point}."
            )
        self.points, self.steps_per_point = points, steps_per_point
        size = torch.Size(ground.shape).numel()
        network = TrajectoryNetwork(ground.make_network(), size, ground.grid(points)[1:])
        self.student = self.operator = network
        self.pool = TrajectoryPool(ground, size=trajectories, points=points)
        self.weights = torch.ones(points)
        self.weights[-1] = max(points - 1, 1)

    def make_trajectories(self, generator: torch.Generator) -> None:
        """Fill the pool from the teacher."""
        times = self.ground.grid(self.points * self.steps_per_point)
        self.pool.fill(self.ground.teacher, Heun(), times, generator)

    def loss(self, generator: torch.Generator) -> Tensor:
        batch = self.pool.draw(self.batch, generator)
        off = (self.operator(batch.x_T, batch.cond) - batch.states).abs().flatten(2).mean(2)
        return (off.mean(0) * self.weights).sum() / self.weights.sum()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """x and its states at the M points, of one call; raises ValueError for another nfe."""
        if nfe != 1:
            raise ValueError(f"DSNO gives the whole trajectory in one call: ask nfe=1, not {nfe}.")
        return [x, *self.operator(x, cond).unbind(1)]

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "trajectories": self.pool}

    def stages(self) -> list[Stage]:
        (stage,) = super().stages()
        return [
            Stage(
                name=stage.name,
                steps=stage.steps,
                players=stage.players,
                enter=self.make_trajectories,
            )
        ]
