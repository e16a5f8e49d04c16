"""Rectified flow on the teacher's own pairs, any number of times, then distilled into one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
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
from core.distillation.students import NetworkDenoiser, VelocityFlowMap, sample_by_jumps
from core.prediction import Parametrisation
from core.schedule import FlowSchedule, per_sample
from core.solvers.ddim import DDIM
from core.solvers.heun import Heun
from core.training import Player, Stage

__all__ = ["Reflow", "straightness", "transport_cost"]

FLOW_STEPS = 8
"""Steps in which a flow that is still to be straightened is shown."""


def transport_cost(start: Tensor, end: Tensor) -> Tensor:
    """E |end - start|^2, a scalar, for [B, ...]: what no round of reflow can raise."""
    return (end - start).square().flatten(1).sum(1).mean()


def straightness(times: Tensor, states: Sequence[Tensor]) -> Tensor:
    """S, the mean over the path of |(Z_1 - Z_0)/(t_1 - t_0) - dZ/dt|^2 (arXiv 2209.03003, Eq. 8).

    A scalar; from N + 1 states [B, ...] at `times` [N + 1], by differences: 0 iff all the pieces
    have one velocity.
    """
    chord = (states[-1] - states[0]) / (times[-1] - times[0])
    total = torch.zeros((), dtype=chord.dtype, device=chord.device)
    for k in range(len(times) - 1):
        dt = times[k + 1] - times[k]
        off = (states[k + 1] - states[k]) / dt - chord
        total = total + dt.abs() * off.square().flatten(1).sum(1).mean()
    return total / (times[-1] - times[0]).abs()


class Reflow(Distillation):
    """|(x_T - x0) - v(t x_T + (1 - t) x0, t)|^2 on pairs (arXiv 2209.03003, Eq. 1), round by round.

    The first round's pairs are the teacher's, each further round's are of the flow before it. The
    last flow, where `distils`, then starts a one-step student x_T - v(x_T, 1), regressed on that
    flow's own ends (InstaFlow, arXiv 2309.06380). Whatever the teacher's schedule is, the students
    live on straight lines: on the flow schedule.

    Args:
        rounds: Of rectification.
        distils: Whether a one-step student follows; without it, one step is Euler's.
        pairs: Made for each stage.
        pair_steps: Of Heun, for each pair.
    """

    card = MethodCard(
        name="reflow",
        title="Reflow and InstaFlow",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2209.03003, 2309.06380",
        idea="Learn straight lines between noises and the samples that the flow makes of them.",
        equation="|(x_T - x0) - v(t x_T + (1 - t) x0, t)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        rounds: int = 2,
        distils: bool = True,
        pairs: int = 8192,
        pair_steps: int = 24,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if rounds < 1 or pair_steps < 1:
            raise ValueError(
                f"rounds and pair_steps must be at least 1, got {rounds} and {pair_steps}."
            )
        if self.steps < rounds + distils:
            raise ValueError(
                f"{rounds + distils} stages need at least as many steps, got {self.steps}."
            )
        self.rounds = rounds
        self.pair_steps = pair_steps
        self.flows = [ground.make_network() for _ in range(rounds)]
        self.jump = ground.make_network() if distils else None
        self.student = self.jump or self.flows[-1]
        self.pool = TrajectoryPool(ground, size=pairs)

    def flow(self, number: int) -> Denoiser:
        """The flow after `number` rounds, on FlowSchedule; 0 is the ground's teacher."""
        if number == 0:
            return self.ground.teacher
        return NetworkDenoiser(self.flows[number - 1], FlowSchedule(), Parametrisation.VELOCITY)

    def make_pairs(self, number: int, generator: torch.Generator) -> None:
        """Fill the pool with noises and what the flow after `number` rounds makes of them."""
        if number == 0:
            self.pool.fill(self.flow(0), Heun(), self.ground.grid(self.pair_steps), generator)
            return
        # Two DDIM steps cost what one of Heun's does, and on a nearly straight flow suffice.
        self.pool.fill(
            self.flow(number), DDIM(), torch.linspace(1, 0, 2 * self.pair_steps + 1), generator
        )

    def loss_of_round(self, number: int, generator: torch.Generator) -> Tensor:
        """Of the flow after `number` rounds, on the pairs in the pool."""
        pair = self.pool.draw(self.batch, generator)
        t = torch.rand(self.batch, generator=generator)
        return self.flow_loss(self.flows[number - 1], pair.x_T, pair.end, t, pair.cond)

    def flow_loss(
        self, network: nn.Module, x_T: Tensor, x0: Tensor, t: Tensor, cond: Conditioning | None
    ) -> Tensor:
        """|(x_T - x0) - v(x_t, t)|^2, the mean over the batch [B, ...] at t [B]."""
        weight = per_sample(t, x0)
        x_t = weight * x_T + (1 - weight) * x0
        return ((x_T - x0) - network(x_t, t, cond=cond)).square().mean()

    def loss(self, generator: torch.Generator) -> Tensor:
        """The last stage's."""
        if self.jump is None:
            return self.loss_of_round(self.rounds, generator)
        pair = self.pool.draw(self.batch, generator)
        ones = torch.ones(self.batch)
        return self.distance(pair.x_T - self.jump(pair.x_T, ones, cond=pair.cond), pair.end)

    def distance(self, x0: Tensor, target: Tensor) -> Tensor:
        """A scalar, of the one-step student's samples and the pairs' ends [B, ...]."""
        return (x0 - target).square().mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """One jump of the one-step student, where there is one; else Euler along the last flow."""
        network = self.jump if nfe == 1 and self.jump is not None else self.flows[-1]
        return self._along(network, x, nfe, cond)

    def sample_in(
        self,
        stage: Stage,
        x: Tensor,
        nfe: int,
        cond: Conditioning | None,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Of the flow that is trained, in no fewer than FLOW_STEPS steps of Euler: no jump yet."""
        trained = stage.players["student"].module
        if trained is self.jump:
            return self.sample(x, nfe, cond, generator)
        return self._along(trained, x, max(nfe, FLOW_STEPS), cond)

    @staticmethod
    def _along(
        network: nn.Module, x: Tensor, steps: int, cond: Conditioning | None
    ) -> list[Tensor]:
        times = torch.linspace(1, 0, steps + 1)
        return sample_by_jumps(VelocityFlowMap(network, FlowSchedule()), x, times, cond)

    def modules(self) -> Mapping[str, nn.Module]:
        """The one-step student, or the last flow, is "student"; and all flows, and the pairs."""
        modules: dict[str, nn.Module] = {
            f"flow_{k + 1}": network for k, network in enumerate(self.flows)
        }
        if self.jump is None:
            modules["student"] = modules.pop(f"flow_{self.rounds}")
        else:
            modules["student"] = self.jump
        return {**modules, "pairs": self.pool}

    def stages(self) -> Sequence[Stage]:
        count = self.rounds + (self.jump is not None)
        stages = []
        for k in range(count):
            flow = k < self.rounds
            player = Player(
                module=self.flows[k] if flow else self.student,
                loss=partial(self.loss_of_round, k + 1) if flow else self.loss,
                learning_rate=self.learning_rate,
            )
            stages.append(
                Stage(
                    name=f"round {k + 1}" if flow else "distil",
                    steps=self.steps * (k + 1) // count - self.steps * k // count,
                    players={"student": player},
                    enter=partial(self._enter, k),
                )
            )
        return stages

    def _enter(self, number: int, generator: torch.Generator) -> None:
        """Pairs of the flow after `number` rounds, whose weights the next student starts from."""
        self.make_pairs(number, generator)
        if number > 0:
            following = self.flows[number] if number < self.rounds else self.student
            following.load_state_dict(self.flows[number - 1].state_dict())
