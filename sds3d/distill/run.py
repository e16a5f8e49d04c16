"""`sds3d distill` and `sds3d sample`: train a student, write it, look at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..config import require_number
from ..errors import BadInput, DistillationStopped, Diverged, OutputError
from ..events import Distilled, DistillStep, Event

if TYPE_CHECKING:
    from .grounds import GroundName


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Train a few-step student of a teacher. The last line printed is the student's folder."""

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD")]
    """One of those that `sds3d methods` lists."""
    teacher: str = "mixture"
    """The proving ground: mixture, mixture-1d or digits."""
    steps: int = 2000
    """Optimiser steps in all."""
    nfe: int = 1
    """Network evaluations of one sample."""
    batch: int = 256
    """Samples in a step."""
    learning_rate: float = 2e-3
    """Adam's rate; it falls to zero in the second half."""
    seed: int = 0
    """Seed of networks and samples."""
    samples: int = 4000
    """Samples that are measured."""
    out: Path = Path("students")
    """Folder in which the student's own folder is made."""

    def __post_init__(self) -> None:
        require_number("--steps", self.steps, 1, 10_000_000)
        require_number("--nfe", self.nfe, 1, 1000)
        require_number("--batch", self.batch, 2, 1_000_000)
        require_number("--learning-rate", self.learning_rate, 0, 1, open_low=True)
        require_number("--seed", self.seed, 0, 2**63 - 1)
        require_number("--samples", self.samples, 100, 1_000_000)

    @property
    def folder(self) -> Path:
        """Of the student: everything that determines it is in the name."""
        name = f"{self.method}-{self.teacher}-nfe{self.nfe}-{self.steps}x{self.batch}"
        return self.out / f"{name}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Draw samples of a student and write a picture of them, its path printed."""

    student: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STUDENT")]
    """The folder that `sds3d distill` printed."""
    nfe: int | None = None
    """Network evaluations of one sample; the student's own number by default."""
    samples: int = 1000
    """How many."""
    seed: int = 1
    """Seed of the noise."""
    out: Path = Path("grid.png")
    """The picture."""

    def __post_init__(self) -> None:
        if self.nfe is not None:
            require_number("--nfe", self.nfe, 1, 1000)
        require_number("--samples", self.samples, 1, 1_000_000)
        require_number("--seed", self.seed, 0, 2**63 - 1)


def _ground_name(name: str) -> GroundName:
    from typing import cast, get_args

    from .grounds import GroundName

    if name not in get_args(GroundName):
        raise BadInput(f"--teacher is {name!r}: give one of {', '.join(get_args(GroundName))}")
    return cast(GroundName, name)


def distill(
    config: DistillConfig, on_event: Callable[[Event], None], should_stop: Callable[[], bool]
) -> Path:
    """Train, measure and write a student, from where an interrupted one of its name stopped.

    Raises BadInput for what does not go together, Diverged, Interrupted (a checkpoint is kept).
    """
    from core.training import CHECKPOINT, DivergedError, History, Stage, train

    from .grounds import named_ground
    from .measure import draw, measure, teacher_samples
    from .pictures import draw_history, draw_samples
    from .students import StudentCard, make, save_student

    ground = named_ground(_ground_name(config.teacher))
    card = StudentCard(
        method=config.method,
        ground=ground.name,
        steps=config.steps,
        nfe=config.nfe,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )
    method = make(card, ground)
    total = sum(stage.steps for stage in method.stages())
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder} ({error.strerror}): choose another --out"
        ) from error
    stopped = False

    def progress(stage: Stage, history: History) -> bool:
        nonlocal stopped
        if history.step % max(1, total // 100) == 0 or history.step == total:
            rate = history.seconds / history.step
            on_event(
                DistillStep(
                    stage=stage.name,
                    step=history.step,
                    steps=total,
                    losses={k: series[-1] for k, series in history.losses.items()},
                    eta_seconds=rate * (total - history.step),
                )
            )
        stopped = should_stop() and history.step < total
        return stopped

    try:
        history = train(method, seed=config.seed, out=folder, progress=progress)
    except DivergedError as error:
        raise Diverged(str(error)) from error
    if stopped:
        raise DistillationStopped(folder, history.step, total)
    try:
        states, _ = draw(method, ground, config.nfe, config.samples, config.seed + 1)
    except ValueError as error:
        raise BadInput(f"--nfe is {config.nfe}: {error}") from error
    teacher = teacher_samples(ground, config.samples, config.seed + 1)
    figures: dict[str, float] = measure(ground, states[-1], teacher, config.seed + 2)
    figures["training_seconds"] = round(history.seconds, 3)
    data = ground.ground.data(config.samples, _generator(config.seed + 3)).x0
    draw_samples(ground, states, data, folder / "samples.png")
    draw_history(history, folder / "history.png")
    save_student(method, card, folder, figures)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    on_event(Distilled(folder=folder, figures=figures))
    return folder


def sample_student(config: SampleConfig) -> Path:
    """Write the picture and return its path. Raises BadInput for a damaged student."""
    from .measure import draw
    from .pictures import draw_samples
    from .students import load_student

    method, card, ground = load_student(config.student)
    nfe = config.nfe or card.nfe
    try:
        states, _ = draw(method, ground, nfe, config.samples, config.seed)
    except ValueError as error:
        raise BadInput(f"--nfe is {nfe}: {error}") from error
    data = ground.ground.data(config.samples, _generator(config.seed + 1)).x0
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        draw_samples(ground, states, data, config.out)
    except OSError as error:
        raise OutputError(f"cannot write {config.out} ({error.strerror})") from error
    return config.out


def _generator(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)
