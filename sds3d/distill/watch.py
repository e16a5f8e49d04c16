"""A student that is watched while it trains: pictures and a history in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from core.distillation.method import Distillation, StudentKind
from core.distillation.students import sample_by_solver
from core.metrics import sliced_wasserstein
from core.solvers.ddim import DDIM
from core.training import History, Stage

from ..atomic import write_atomic
from ..errors import output_error
from ..jobs.previews import Ration
from .digits import CLASSES
from .frames import Frames
from .grounds import NamedGround
from .measure import conditioning

STUDENT_PICTURE = "student.png"
TEACHER_PICTURE = "teacher.png"
TEACHER_FEW_PICTURE = "teacher-few.png"
HISTORY = "history.json"
TEACHER_STEPS = 64
SAMPLES = {"mixture": 400, "mixture-1d": 400, "digits": 60, "clouds": 6}
SEED = 4
"""Of the noise: one for all students of a ground, so that they can be compared."""
WINDOWS = 100
"""Points of a loss's curve; each is the mean over a window."""

Taken = Callable[[str, History, float | None], None]


class Watch:
    """Draws the same noise through the student again and again, and once through its teacher.

    `teacher.png` and `teacher-few.png` are the teacher's samples of that noise by DDIM in 64 steps
    and in `nfe`, `student.png` the student's as it is now, `history.json` the losses so far and
    the distance of the student's samples to the teacher's. Changes nothing in the training and
    draws from no generator of it. `taken` is told the stage's name, the history and the distance.
    """

    def __init__(
        self,
        method: Distillation,
        ground: NamedGround,
        *,
        nfe: int,
        folder: Path,
        taken: Taken,
        ration: Ration,
    ) -> None:
        self._method, self._nfe, self._folder = method, nfe, folder
        self._taken, self._ration = taken, ration
        self._has_distance = ground.name != "clouds"
        n = SAMPLES[ground.name]
        classes = conditioning(ground, n, _generator(0))
        self._cond = conditioning(ground, n, _generator(0), method)
        self._start = method.noise(n, _generator(1))
        self._order = torch.arange(n)
        if ground.name == "digits" and classes is not None and classes.labels is not None:
            # By class; those that may be any come last.
            self._order = classes.labels.remainder(CLASSES + 1).argsort(stable=True)
        is_generator = method.card.student is StudentKind.GENERATOR
        self._frames = Frames(ground, has_paths=not is_generator)
        self._distances = self._earlier()
        self._began = ration.now()
        x = ground.ground.noise(n, _generator(1))
        teachers = Frames(ground, has_paths=True)

        def by_teacher(name: str, steps: int) -> Tensor:
            with torch.no_grad():
                states = sample_by_solver(
                    ground.ground.teacher, DDIM(), x, ground.ground.grid(steps), classes
                )
            self._write(name, teachers.draw([state[self._order] for state in states]))
            return states[-1]

        by_teacher(TEACHER_FEW_PICTURE, nfe)
        self._teacher = by_teacher(TEACHER_PICTURE, TEACHER_STEPS)
        if method.makes_directions:
            self._teacher = self._teacher / self._teacher.norm(dim=1, keepdim=True)
        ration.count(ration.now() - self._began, is_typical=False)

    def __call__(self, stage: Stage, history: History) -> None:
        """Called after each step: takes a picture where one is due."""
        if self._ration.is_due():
            self.take(stage, history)

    def take(self, stage: Stage | None, history: History) -> None:
        """Take a picture now; of the finished student without a stage."""
        began = self._ration.now()
        generator = _generator(2)
        with torch.no_grad():
            if stage is None:
                states = self._method.sample(self._start, self._nfe, self._cond, generator)
            else:
                states = self._method.sample_in(
                    stage, self._start, self._nfe, self._cond, generator
                )
        distance = None
        if self._has_distance:
            apart = float(sliced_wasserstein(states[-1], self._teacher, _generator(3)))
            distance = apart if math.isfinite(apart) else None
        if distance is not None:
            self._distances[history.step] = distance
        self._write(STUDENT_PICTURE, self._frames.draw([state[self._order] for state in states]))
        text = json.dumps(_course(history, self._distances), allow_nan=False)
        self._write(HISTORY, text.encode())
        self._ration.count(self._ration.now() - began)
        self._taken("" if stage is None else stage.name, history, distance)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomic(self._folder / name, data)
        except OSError as error:
            raise output_error(error, self._folder) from error

    def _earlier(self) -> dict[int, float]:
        """What an interrupted training of this student measured."""
        try:
            found = json.loads((self._folder / HISTORY).read_text(encoding="utf-8"))["distance"]
            return {int(step): float(value) for step, value in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + number)


def _course(history: History, distances: dict[int, float]) -> dict[str, object]:
    """Losses in windows by their last step, distances by step, and where the stages began."""
    losses: dict[str, dict[int, float]] = {}
    for name, series in history.losses.items():
        width = max(1, math.ceil(len(series) / WINDOWS))
        for end in range(width, len(series) + 1, width):
            kept = [value for value in series[end - width : end] if math.isfinite(value)]
            if kept:
                losses.setdefault(name, {})[end] = sum(kept) / len(kept)
    return {
        "step": history.step,
        "stages": [list(stage) for stage in history.stages],
        "losses": losses,
        "distance": {s: d for s, d in sorted(distances.items()) if s <= history.step},
    }
