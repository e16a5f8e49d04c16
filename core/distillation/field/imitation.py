"""What methods that fine-tune a sampler start from: a student that says what the teacher says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from core.distillation.method import Ground
from core.distillation.students import NetworkDenoiser
from core.schedule import diffuse, noise_like
from core.training import Player, Stage

__all__ = ["imitate_then", "imitation_loss"]


def imitation_loss(
    student: NetworkDenoiser, ground: Ground, batch: int, generator: torch.Generator
) -> Tensor:
    """The mean squared difference of student and teacher in the student's own parametrisation."""
    data = ground.data(batch, generator)
    t = ground.times(batch, generator)
    x_t = diffuse(ground.schedule, data.x0, noise_like(data.x0, generator), t)
    with torch.no_grad():
        wanted = ground.teacher(x_t, t, data.cond).read(student.parametrisation)
    return (student(x_t, t, data.cond).value - wanted).square().mean()


def imitate_then(
    student: NetworkDenoiser,
    ground: Ground,
    *,
    imitation_steps: int,
    tuning_steps: int,
    batch: int,
    learning_rate: float,
    tuning: Mapping[str, Player],
) -> list[Stage]:
    """Two stages: the student learns the teacher's answers, then `tuning`'s players play.

    Raises ValueError where a stage has no step, or the student's network is no torch module.
    """
    if imitation_steps < 1 or tuning_steps < 1:
        raise ValueError(
            f"steps must exceed imitation_steps, and both be at least 1; got "
            f"{imitation_steps + tuning_steps} and {imitation_steps}."
        )
    network = student.network
    if not isinstance(network, torch.nn.Module):
        raise ValueError("The student's network must be a torch module to be trained.")
    loss: Callable[[torch.Generator], Tensor] = partial(imitation_loss, student, ground, batch)
    player = Player(module=network, loss=loss, learning_rate=learning_rate)
    return [
        Stage(name="imitate", steps=imitation_steps, players={"student": player}),
        Stage(name="fine-tune", steps=tuning_steps, players=tuning),
    ]
