"""What every distillation method is made of: the ground it stands on, its card, its loss.

A regression method is a subclass of `Distillation` with a card, a student and a `loss`; methods
with several players or stages override `stages` and `modules` (core.training.Method). Nothing
here trains: core.training.train does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.prediction import Parametrisation
from core.schedule import NoiseSchedule, noise_like, per_sample
from core.training import Player, Stage

__all__ = [
    "Batch",
    "Distillation",
    "Family",
    "Ground",
    "MethodCard",
    "Needs",
    "Settings",
    "StudentKind",
]


class Family(Enum):
    """The surveys' taxonomy (Luo, arXiv 2304.04262; Fan et al., arXiv 2410.13738)."""

    OUTPUT = "diffusion to field: the teacher's output"
    PATH = "diffusion to field: the teacher's path"
    GENERATOR = "diffusion to generator"


class StudentKind(Enum):
    """What a student is when it is done (core.distillation.students)."""

    DENOISER = "denoiser"
    FLOW_MAP = "flow map"
    GENERATOR = "generator"


class Needs(Enum):
    """What a method cannot do without."""

    TEACHER = "a teacher"
    DATA = "training data"
    LABELS = "class labels"
    CLASSIFIER = "a classifier"
    CLOUDS = "point clouds"


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """A method's line in lists and tables.

    name        as in `sds3d distill NAME`
    nfe         the numbers of network evaluations that its student is meant for
    reference   arXiv id, or venue where there is none
    idea        one sentence
    equation    the loss, in plain characters
    """

    name: str
    title: str
    family: Family
    student: StudentKind
    needs: frozenset[Needs]
    nfe: tuple[int, ...]
    reference: str
    idea: str
    equation: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """x0 [B, ...] of the data, with its conditioning."""

    x0: Tensor
    cond: Conditioning | None = None


class _MakeNetwork(Protocol):
    """A fresh network of the ground's shape, drawn from torch's global generator."""

    def __call__(
        self,
        *,
        times: int = 1,
        reads_guidance_scale: bool = False,
        in_dimension: int | None = None,
    ) -> nn.Module:
        """`in_dimension` replaces the data's shape by a flat z of that size (generators)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Where methods are tried: a frozen teacher, its data, and networks of a fitting shape.

    shape          of one sample
    t_min, t_max   the times between which students work; the schedule's ends where they exist
    data           (n, generator) to a Batch of n
    data_std       of x0, per coordinate
    parametrisation   what its networks give where they are denoisers
    """

    teacher: Denoiser
    shape: tuple[int, ...]
    data: Callable[[int, torch.Generator], Batch]
    make_network: _MakeNetwork
    data_std: float
    t_min: float = 1e-3
    t_max: float = 1.0
    parametrisation: Parametrisation = Parametrisation.V_PREDICTION

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of the prior [n, *shape]: normal, as wide as x_t at t_max."""
        t = torch.full((n,), self.t_max)
        eps = noise_like(torch.empty(n, *self.shape), generator)
        spread = (
            self.schedule.sigma(t).square() + (self.schedule.alpha(t) * self.data_std).square()
        ).sqrt()
        return per_sample(spread, eps) * eps

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """n uniform times in [t_min, t_max]."""
        u = torch.rand(n, generator=generator)
        return self.t_min + (self.t_max - self.t_min) * u

    def grid(self, steps: int) -> Tensor:
        """steps + 1 float32 times from t_max to t_min, uniform."""
        return torch.linspace(self.t_max, self.t_min, steps + 1)


class Settings(TypedDict, total=False):
    """What every method takes: optimiser steps in all, samples a step, Adam's learning rate."""

    steps: Required[int]
    batch: int
    learning_rate: float


class Distillation(ABC):
    """A method with one player: a student, trained by one loss in one stage.

    Subclasses make `self.student` (the trained module), define `card`, `loss` and `sample`.
    """

    card: ClassVar[MethodCard]
    is_conditional: ClassVar[bool] = True
    """Whether samples can be asked for under a conditioning."""
    makes_directions: ClassVar[bool] = False
    """Whether samples are unit vectors: where the data's lie as seen from the origin."""
    student: nn.Module

    def __init__(self, ground: Ground, **settings: Unpack[Settings]) -> None:
        self.ground = ground
        self.steps = settings["steps"]
        self.batch = settings.get("batch", 256)
        self.learning_rate = settings.get("learning_rate", 2e-3)

    @abstractmethod
    def loss(self, generator: torch.Generator) -> Tensor:
        """A scalar over a batch drawn from `generator`."""

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """n of what `sample` starts from: the prior's x, or z where a generator reads another."""
        return self.ground.noise(n, generator)

    @abstractmethod
    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """The student's states from the prior's x [B, ...], or z, in `nfe` network evaluations.

        The last state is the sample.
        """

    def sample_in(
        self,
        stage: Stage,
        x: Tensor,
        nfe: int,
        cond: Conditioning | None,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """`sample`, of what `stage` trains: the same, unless the student comes in a later stage.

        In place of `nfe` it may take the evaluations that fit what is trained.
        """
        return self.sample(x, nfe, cond, generator)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student}

    def stages(self) -> Sequence[Stage]:
        player = Player(module=self.student, loss=self.loss, learning_rate=self.learning_rate)
        return [Stage(name="distil", steps=self.steps, players={"student": player})]
