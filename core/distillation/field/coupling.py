"""Curvature-minimising coupling: which noise belongs to which sample is learned with the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import (
    Batch,
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import VelocityFlowMap, sample_by_jumps
from core.schedule import FlowSchedule, noise_like, per_sample
from core.training import Player, Stage

__all__ = ["CurvatureCoupling"]


class CurvatureCoupling(Distillation):
    """|(z - x0) - v(x_t, t)|^2 + beta KL(q(z | x0) | N(0, I)), z drawn from q (arXiv 2301.12003).

    q(z | x0) = N(mean(x0), std(x0)^2) is learned together with v: the flow's loss, which
    reaches q through z and x_t, is the variance of the lines that cross at a point, and falls as
    they part. beta large is the independent coupling of plain flow matching; beta small gives
    straighter paths, from a mixture of q that is no longer quite the prior.

    Args:
        beta: Of the divergence, a sum over coordinates as the flow's loss here is.
    """

    card = MethodCard(
        name="coupling",
        title="Curvature-minimising coupling",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2301.12003",
        idea="Choose each sample's noise so that the lines between them cross less.",
        equation="|(z - x0) - v(x_t, t)|^2 + beta KL(q(z | x0) | N(0, I))",
    )

    def __init__(self, ground: Ground, *, beta: float = 0.5, **settings: Unpack[Settings]) -> None:
        super().__init__(ground, **settings)
        if beta <= 0:
            raise ValueError(
                f"beta must be positive, got {beta}: at 0 nothing keeps the noises near the prior."
            )
        self.beta = beta
        self.student = ground.make_network()
        self.mean = ground.make_network(times=0)
        self.log_std = ground.make_network(times=0)
        self.flow_map = VelocityFlowMap(self.student, FlowSchedule())

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """The coupling's prior: standard normal on any schedule."""
        return noise_like(torch.empty(n, *self.ground.shape), generator)

    def encode(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation of q(z | x0), each [B, ...]."""
        return self.mean(data.x0, cond=data.cond), self.log_std(data.x0, cond=data.cond)

    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """KL(N(mean, std^2) | N(0, I)) [B]."""
        each = (mean.square() + (2 * log_std).exp() - 1) / 2 - log_std
        return each.flatten(1).sum(1)

    def terms(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The flow's loss and the divergence, two scalars."""
        data = self.ground.data(self.batch, generator)
        mean, log_std = self.encode(data)
        z = mean + log_std.exp() * noise_like(data.x0, generator)
        t = torch.rand(self.batch, generator=generator)
        weight = per_sample(t, z)
        x_t = weight * z + (1 - weight) * data.x0
        off = (z - data.x0) - self.student(x_t, t, cond=data.cond)
        flow = off.square().flatten(1).sum(1).mean()
        return flow, self.divergence(mean, log_std).mean()

    def loss(self, generator: torch.Generator) -> Tensor:
        flow, divergence = self.terms(generator)
        return flow + self.beta * divergence

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_jumps(self.flow_map, x, torch.linspace(1, 0, nfe + 1), cond)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "mean": self.mean, "log_std": self.log_std}

    def stages(self) -> Sequence[Stage]:
        """One player: the flow and the coupling descend the same loss together."""
        together = nn.ModuleList(self.modules().values())
        player = Player(module=together, loss=self.loss, learning_rate=self.learning_rate)
        return [Stage(name="couple", steps=self.steps, players={"student": player})]
