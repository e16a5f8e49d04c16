"""Shortcut models: one network for steps of any size, each size taught by two of half of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import VelocityFlowMap, sample_by_jumps
from core.prediction import Parametrisation
from core.schedule import diffuse, noise_like, per_sample
from core.training import Player, Stage

__all__ = ["ShortcutModel"]


class ShortcutModel(Distillation):
    """|u(x_t, t, t) - v|^2 + |u(x_t, t, s) - sg (u_1 + u_2) / 2|^2 (arXiv 2410.12557, Eq. 5).

    u_1 is the mean velocity over the first half of [s, t], u_2 that over the second half from
    where u_1 leads. Steps are 2, 4, 8, ... cells of a grid of 2^levels; half a step of one cell
    is taken with the velocity itself. No teacher: v = dx_t/dt of the drawn x0 and eps.
    """

    card = MethodCard(
        name="shortcut",
        title="Shortcut model",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2410.12557",
        idea="A step must equal two steps of half its size, down to the velocity itself.",
        equation="|u(x_t, t, t) - v|^2 + |u(x_t, t, s) - (u_1 + u_2) / 2|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        levels: int = 6,
        shortcut_share: float = 0.25,
        average_decay: float = 0.95,
        **settings: Unpack[Settings],
    ) -> None:
        """`shortcut_share` of a batch learns steps, the rest velocities.

        `average_decay` is that of the average which gives the steps' targets.
        """
        super().__init__(ground, **settings)
        if levels < 1 or not 0 < shortcut_share < 1 or self.batch < 2:
            raise ValueError(
                "A shortcut model needs levels >= 1, shortcut_share in (0, 1) and batch >= 2, got "
                f"{levels}, {shortcut_share} and {self.batch}."
            )
        self.levels = levels
        self.n_shortcuts = min(max(1, round(shortcut_share * self.batch)), self.batch - 1)
        self.average_decay = average_decay
        self.student = ground.make_network(times=2)
        self.average = deepcopy(self.student).requires_grad_(False)
        self.flow_map = VelocityFlowMap(self.student, ground.schedule)
        self.target_map = VelocityFlowMap(self.average, ground.schedule)

    @torch.no_grad()
    def target(
        self,
        x_t: Tensor,
        t: Tensor,
        middle: Tensor,
        s: Tensor,
        by_velocity: Tensor,
        cond: Conditioning | None,
    ) -> Tensor:
        """The mean velocity [B, ...] over two steps, t to middle to s.

        Where `by_velocity` [B], the steps are taken with the velocity at their start.
        """
        network = self.target_map.network
        first = network(x_t, t, torch.where(by_velocity, t, middle), cond)
        x_middle = x_t + per_sample(middle - t, x_t) * first
        second = network(x_middle, middle, torch.where(by_velocity, middle, s), cond)
        return (first + second) / 2

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        n, cells = self.n_shortcuts, 2**self.levels
        grid = self.ground.grid(cells)
        # Of the first n samples: steps of 2, 4, ..., all cells, each from a multiple of its size.
        half = 2 ** torch.randint(self.levels, (n,), generator=generator)
        first = torch.rand(n, generator=generator) * (cells // (2 * half))
        start = first.long() * 2 * half
        middle, end = grid[start + half], grid[start + 2 * half]
        t = torch.cat([grid[start], self.ground.times(self.batch - n, generator)])
        s = torch.cat([end, t[n:]])
        eps = noise_like(data.x0, generator)
        x_t = diffuse(self.ground.schedule, data.x0, eps, t)
        v = Parametrisation.VELOCITY.target(data.x0, eps, t, self.ground.schedule)
        cond = None if data.cond is None else data.cond.select(slice(n))
        steps = self.target(x_t[:n], t[:n], middle, end, half == 1, cond)
        target = torch.cat([steps, v[n:]])
        return (self.student(x_t, t, s, data.cond) - target).square().mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """Raises ValueError for a number of steps that the student did not learn."""
        if nfe < 1 or nfe & (nfe - 1) or nfe > 2 ** (self.levels - 1):
            raise ValueError(
                f"This student takes 1, 2, 4, ... {2 ** (self.levels - 1)} steps, not {nfe}."
            )
        return sample_by_jumps(self.flow_map, x, self.ground.grid(nfe), cond)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "average": self.average}

    def stages(self) -> Sequence[Stage]:
        player = Player(
            module=self.student,
            loss=self.loss,
            learning_rate=self.learning_rate,
            average=self.average,
            average_decay=self.average_decay,
        )
        return [Stage(name="distil", steps=self.steps, players={"student": player})]
