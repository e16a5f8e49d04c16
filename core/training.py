"""The one loop that trains any method: players taking turns, stage after stage.

A method says what is trained and by what loss (`Player`), for how long (`Stage`), and holds every
module that changes. The loop owns the rest: optimisers, the learning rate's fall, averages, the
random numbers, a history, and a checkpoint from which a run goes on to the same bits.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["DivergedError", "History", "Method", "Player", "Stage", "train"]

CHECKPOINT = "training.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Player:
    """A set of parameters with its loss and its turn.

    module          what is trained; parameters without requires_grad are left alone
    loss            draws its own batch from the generator, and returns a scalar
    learning_rate   Adam's; constant for half of the stage, then falls linearly to zero
    updates         optimiser steps in each of the stage's steps (a fake score may need several)
    average         module that follows `module` as an exponential moving average, if any
    average_decay   of that average
    betas           Adam's
    """

    module: nn.Module
    loss: Callable[[torch.Generator], Tensor]
    learning_rate: float = 2e-3
    updates: int = 1
    average: nn.Module | None = None
    average_decay: float = 0.99
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.updates < 1 or not 0 <= self.average_decay < 1:
            raise ValueError(
                "A player needs learning_rate > 0, updates >= 1 and average_decay in [0, 1), got "
                f"{self.learning_rate}, {self.updates} and {self.average_decay}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """Some steps in which the same players take turns, in the mapping's order.

    enter    called once, before the first step: hands students on, makes pairs
    """

    name: str
    steps: int
    players: Mapping[str, Player]
    enter: Callable[[torch.Generator], None] | None = None


class Method(Protocol):
    """What is trained, by what loss, in which turn."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Every module that training changes; the checkpoint holds exactly these."""
        ...

    def stages(self) -> Sequence[Stage]:
        """The same stages at every call; one for most methods, several for progressive ones."""
        ...


class DivergedError(RuntimeError):
    """A loss that is not finite."""


@dataclass(kw_only=True, eq=False)
class History:
    """Losses by player, one number a step, over all stages; and where each stage began."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    stages: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0

    def record(self, player: str, loss: float) -> None:
        """Append; a player that joins late has NaN for the steps before it."""
        series = self.losses.setdefault(player, [])
        series += [math.nan] * (self.step - len(series))
        series.append(loss)


def train(
    method: Method,
    *,
    seed: int = 0,
    out: Path | None = None,
    checkpoint_every_s: float = 60.0,
    progress: Callable[[Stage, History], bool] | None = None,
) -> History:
    """Train `method` to its end.

    Args:
        method: Trained in place.
        seed: Of every random number that the losses draw.
        out: Folder of the checkpoint; a run that finds one there goes on from it, to the same
            bits as if it had never stopped. None keeps nothing.
        checkpoint_every_s: Seconds between checkpoints.
        progress: Called after each step; returns whether to stop (the checkpoint is written).

    Raises:
        DivergedError: A loss is not finite; names player, stage and step.
    """
    run = _Run(method, seed)
    path = None if out is None else out / CHECKPOINT
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            run.load(path)
    saved = time.monotonic()
    while run.stage is not None:
        before = time.monotonic()
        stage = run.stage
        run.step()
        run.history.seconds += time.monotonic() - before
        stopped = progress is not None and progress(stage, run.history)
        if path is not None and (
            stopped or run.stage is None or time.monotonic() - saved > checkpoint_every_s
        ):
            run.save(path)
            saved = time.monotonic()
        if stopped:
            break
    return run.history


class _Run:
    """The state of a training: stage, step, optimisers, random numbers, history."""

    def __init__(self, method: Method, seed: int) -> None:
        self.method = method
        self.generator = torch.Generator().manual_seed(seed)
        self.history = History()
        self.index = -1
        self.within = 0
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.stage: Stage | None = None
        self._next_stage(fresh=True)

    def _next_stage(self, *, fresh: bool) -> None:
        self.index += 1
        self.within = 0
        stages = self.method.stages()
        if self.index >= len(stages):
            self.stage = None
            return
        self.stage = stages[self.index]
        if fresh:
            self.history.stages.append((self.stage.name, self.history.step))
            if self.stage.enter is not None:
                self.stage.enter(self.generator)
        self.optimizers = {
            name: torch.optim.Adam(
                [p for p in player.module.parameters() if p.requires_grad],
                lr=player.learning_rate,
                betas=player.betas,
            )
            for name, player in self.stage.players.items()
        }

    def step(self) -> None:
        stage = self.stage
        assert stage is not None
        left = 1.0 - self.within / stage.steps
        for name, player in stage.players.items():
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = player.learning_rate * min(1.0, 2.0 * left)
            value = math.nan
            for _ in range(player.updates):
                loss = player.loss(self.generator)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise DivergedError(
                        f"The loss of {name!r} is {value} at step {self.within} of stage "
                        f"{stage.name!r}. Lower its learning rate (now {player.learning_rate:g})."
                    )
                optimizer.zero_grad(set_to_none=True)
                # A loss may reach other players' parameters; only this player's move.
                parameters = [p for g in optimizer.param_groups for p in g["params"]]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            if player.average is not None:
                _follow(player.average, player.module, player.average_decay)
            self.history.record(name, value)
        self.history.step += 1
        self.within += 1
        if self.within == stage.steps:
            self._next_stage(fresh=True)

    def save(self, path: Path) -> None:
        """Whole, and under a temporary name first."""
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        for name, module in self.method.modules().items():
            for key, value in module.state_dict().items():
                tensors[f"module.{name}.{key}"] = value.detach().clone().contiguous()
        for name, optimizer in self.optimizers.items():
            for i, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"adam.{name}.{i}.{key}"] = value.detach().clone().contiguous()
        for name, series in self.history.losses.items():
            tensors[f"history.{name}"] = torch.tensor(series, dtype=torch.float64)
        numbers = {
            "index": self.index,
            "within": self.within,
            "step": self.history.step,
            "seconds": self.history.seconds,
            "stages": ";".join(f"{name},{at}" for name, at in self.history.stages),
        }
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={k: str(v) for k, v in numbers.items()})
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as handle:
            numbers = handle.metadata()
        self.generator.set_state(tensors["generator"])
        self.history = History(
            losses={
                k.removeprefix("history."): v.tolist()
                for k, v in tensors.items()
                if k.startswith("history.")
            },
            stages=[
                (name, int(at))
                for name, _, at in (part.rpartition(",") for part in numbers["stages"].split(";"))
            ],
            seconds=float(numbers["seconds"]),
            step=int(numbers["step"]),
        )
        for name, module in self.method.modules().items():
            prefix = f"module.{name}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(state)
        self.index = int(numbers["index"]) - 1
        self._next_stage(fresh=False)
        self.within = int(numbers["within"])
        for name, optimizer in self.optimizers.items():
            prefix = f"adam.{name}."
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(prefix):
                    i, _, what = key.removeprefix(prefix).partition(".")
                    moments.setdefault(int(i), {})[what] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    for mean, parameter in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(parameter, 1.0 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
