"""`sds3d distill` and `sds3d sample`: train a student, write it, look at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, cast

import tyro

from ..errors import BadInput, DistillationStopped, Diverged, OutputError
from ..events import Distilled, DistillPicture, DistillStep, Event
from ..require import require_number

if TYPE_CHECKING:
    from torch import Tensor

    from core.distillation.method import Distillation

    from .grounds import GroundName, NamedGround
    from .teacher_folders import FolderOfTeacher
    from .watch import Watch

T = TypeVar("T")
TOYBOX = "toybox"
NAMES = ("mixture", "mixture-1d", "digits", "clouds", TOYBOX)
"""Of the grounds; any other --teacher is a folder."""
TELL_SECONDS = 0.5
"""The progress is told at least so often, between two steps."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Train a few-step student of a teacher. The last line printed is the student's folder."""

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD")]
    """One of those that `sds3d methods` lists."""
    teacher: str = "mixture"
    """The proving ground: mixture, mixture-1d, digits, clouds or toybox, the embedded teacher; or
    the folder of a toybox teacher, or of one of digits as scripts/train_digits_teacher.py makes."""
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
    picture_every: float = 0.0
    """Seconds between pictures of the student while it trains, student.png in its folder; 0 takes
    one at the end alone. They cost at most a tenth of the time."""
    out: Path = Path("students")
    """Folder in which the student's own folder is made."""

    def __post_init__(self) -> None:
        require_number("--steps", self.steps, 1, 10_000_000)
        require_number("--nfe", self.nfe, 1, 1000)
        require_number("--batch", self.batch, 2, 1_000_000)
        require_number("--learning-rate", self.learning_rate, 0, 1, open_low=True)
        require_number("--seed", self.seed, 0, 2**63 - 1)
        require_number("--samples", self.samples, 100, 1_000_000)
        require_number("--picture-every", self.picture_every, 0, 3600)

    @property
    def folder(self) -> Path:
        """Of the student: everything that determines its weights is in the name."""
        from .teacher_folders import folder_of_teacher

        given = None if self.teacher in NAMES else folder_of_teacher(self.teacher)
        teacher = self.teacher if given is None else given.label
        name = f"{self.method}-{teacher}-nfe{self.nfe}-{self.steps}x{self.batch}"
        return self.out / f"{name}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Draw samples of a student and write a picture of them, its path printed."""

    student: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STUDENT")]
    """The folder that `sds3d distill` printed."""
    nfe: int | None = None
    """Network evaluations of one sample; the student's own number by default."""
    samples: int | None = None
    """How many; 1000 by default, and of the toybox's pictures 16."""
    seed: int = 1
    """Seed of the noise."""
    out: Path = Path("grid.png")
    """The picture."""

    def __post_init__(self) -> None:
        if self.nfe is not None:
            require_number("--nfe", self.nfe, 1, 1000)
        if self.samples is not None:
            require_number("--samples", self.samples, 1, 1_000_000)
        require_number("--seed", self.seed, 0, 2**63 - 1)


def _ground_of(teacher: str) -> tuple[GroundName | Literal["toybox"], FolderOfTeacher | None]:
    """The ground's name, and the folder where --teacher gives one."""
    from .teacher_folders import folder_of_teacher

    if teacher in NAMES:
        return cast("GroundName", teacher), None
    given = folder_of_teacher(teacher)
    if given is None:
        raise BadInput(
            f"--teacher is {teacher!r}: give one of {', '.join(NAMES)}, or the folder of a toybox "
            "or digits teacher"
        )
    return given.ground, given


def distill(
    config: DistillConfig, on_event: Callable[[Event], None], should_stop: Callable[[], bool]
) -> Path:
    """Train, measure and write a student, from where an interrupted one of its name stopped.

    Raises BadInput for what does not go together, Diverged, Interrupted (a checkpoint is kept).
    """
    name, given = _ground_of(config.teacher)
    if name == TOYBOX:
        # Its students are networks of pictures, begun as copies of the teacher: another business.
        if config.picture_every > 0:
            raise BadInput(
                "--picture-every is not for toybox, whose pictures take long to draw: leave it out"
            )
        from ..teachers import TOYBOX_FOLDER
        from .toybox_run import distill_toybox

        base = TOYBOX_FOLDER if given is None else given.path
        return distill_toybox(config, on_event, should_stop, base=base)
    from core.training import CHECKPOINT, DivergedError, History, Stage, train

    from .catalogue import find_method
    from .grounds import named_ground
    from .measure import draw, measure, teacher_samples
    from .pictures import draw_history, draw_samples
    from .students import StudentCard, make, save_samples, save_student
    from .watch import TEACHER_STEPS

    ground = named_ground(cast("GroundName", name), None if given is None else given.path)
    ground = ground.serving(find_method(config.method).card)
    card = StudentCard(
        method=config.method,
        ground=ground.name,
        steps=config.steps,
        nfe=config.nfe,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
        teacher_folder=None if given is None else str(given.path),
        teacher_sha256=None if given is None else given.sha256,
    )
    method = make(card, ground)
    try:
        # Better refused now than when it is trained.
        draw(method, ground, config.nfe, 2, config.seed + 1)
    except ValueError as error:
        raise BadInput(f"--nfe is {config.nfe}: {error}") from error
    total = sum(stage.steps for stage in method.stages())
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder} ({error.strerror}): choose another --out"
        ) from error
    watch = _watch(config, method, ground, total, on_event)
    stopped = False
    told = time.monotonic()

    def progress(stage: Stage, history: History) -> bool:
        nonlocal stopped, told
        now, last = time.monotonic(), history.step == total
        if history.step % max(1, total // 100) == 0 or last or now - told > TELL_SECONDS:
            told = now
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
        if config.picture_every > 0 and not last:
            watch(stage, history)
        stopped = should_stop() and not last
        return stopped

    if config.picture_every > 0 and not (folder / CHECKPOINT).exists():
        watch.take(method.stages()[0], History())
    try:
        history = train(method, seed=config.seed, out=folder, progress=progress)
    except DivergedError as error:
        raise Diverged(str(error)) from error
    if stopped:
        raise DistillationStopped(folder, history.step, total)
    watch.take(None, history)

    n, seed = config.samples, config.seed + 1
    (states, cond), seconds = _timed(lambda: draw(method, ground, config.nfe, n, seed))
    many, many_seconds = _timed(lambda: teacher_samples(ground, n, seed, TEACHER_STEPS))
    few, few_seconds = _timed(lambda: teacher_samples(ground, n, seed, config.nfe))

    def figures_of(
        samples: Tensor, seconds: float, *, are_directions: bool = False
    ) -> dict[str, float]:
        found = measure(ground, samples, many, config.seed + 2, are_directions=are_directions)
        return {**found, "seconds_per_1000": round(1000 * seconds / n, 6)}

    figures = figures_of(states[-1], seconds, are_directions=method.makes_directions)
    figures["training_seconds"] = round(history.seconds, 3)
    teacher = [
        {"nfe": config.nfe, **figures_of(few, few_seconds)},
        {"nfe": TEACHER_STEPS, **figures_of(many, many_seconds)},
    ]
    data = ground.ground.data(n, _generator(config.seed + 3)).x0
    draw_samples(ground, states, data, many, folder / "samples.png")
    draw_history(history, folder / "history.png")
    save_samples(states[-1], cond, many, folder)
    save_student(method, card, folder, figures, teacher)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    on_event(Distilled(folder=folder, figures=figures, teacher=teacher))
    return folder


def _timed(make: Callable[[], T]) -> tuple[T, float]:
    """What `make` makes, and the seconds that it took."""
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def _watch(
    config: DistillConfig,
    method: Distillation,
    ground: NamedGround,
    total: int,
    on_event: Callable[[Event], None],
) -> Watch:
    from core.training import History

    from ..jobs.previews import Ration
    from .watch import Watch

    def taken(stage: str, history: History, distance: float | None) -> None:
        on_event(DistillPicture(stage=stage, step=history.step, steps=total, to_teacher=distance))

    return Watch(
        method,
        ground,
        nfe=config.nfe,
        folder=config.folder,
        taken=taken,
        ration=Ration(seconds=config.picture_every, first_guess=0.03),
    )


def sample_student(config: SampleConfig) -> Path:
    """Write the picture and return its path. Raises BadInput for a damaged student."""
    from .students import is_toybox_student

    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        if is_toybox_student(config.student):
            from .toybox_run import draw_toybox_student

            draw_toybox_student(
                config.student, config.out, nfe=config.nfe, n=config.samples or 16, seed=config.seed
            )
        else:
            _draw_student(config)
    except OSError as error:
        raise OutputError(f"cannot write {config.out} ({error.strerror})") from error
    return config.out


def _draw_student(config: SampleConfig) -> None:
    from .measure import draw, teacher_samples
    from .pictures import draw_samples
    from .students import load_student

    method, card, ground = load_student(config.student)
    nfe, n = config.nfe or card.nfe, config.samples or 1000
    try:
        states, _ = draw(method, ground, nfe, n, config.seed)
    except ValueError as error:
        raise BadInput(f"--nfe is {nfe}: {error}") from error
    data = ground.ground.data(n, _generator(config.seed + 1)).x0
    draw_samples(ground, states, data, teacher_samples(ground, n, config.seed), config.out)


def _generator(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)
