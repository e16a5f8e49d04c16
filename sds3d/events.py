"""What a run tells its listeners: progress, warnings, previews, the result.

The loop and the pipeline emit these values and know nothing of terminals or browsers. Each
becomes one line of JSON, `{"event": "<name in lower case>", ...}`; numbers that JSON cannot hold
(NaN, infinities) become null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


HEALTH_INTERVAL = 50
"""Steps from one judgement of the field's health to the next."""

SOUND = "it looks sound: a solid thing with space around it"
"""The health of a field of which there is nothing to complain, or nothing any more."""


@dataclass(frozen=True)
class _Event:
    def to_dict(self) -> dict[str, Any]:
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"event": type(self).__name__.lower(), **fields}

    def to_json(self) -> str:
        """The event as one line of JSON, in ASCII and without a line end."""
        return json.dumps(self.to_dict(), allow_nan=False)


@dataclass(frozen=True)
class Stage(_Event):
    """A stage of the pipeline begins ("teacher", "optimize", "refine", "mesh", "export")."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Step(_Event):
    """One step of the optimisation is done.

    `timestep` is the mean diffusion time of the step in [0, 1], `opacity` the mean rendered
    opacity in [0, 1], `agreement` the mean of |x - D(x_t)|² at fixed times, noise and cameras,
    less being better (None where it was not computed), `samples` the number of field samples,
    `resolution` the side of the rendered views in pixels.
    """

    step: int
    steps: int
    timestep: float
    opacity: float
    step_seconds: float
    eta_seconds: float
    agreement: float | None = None
    samples: int | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class Warning(_Event):
    """Something unexpected that the run could deal with."""

    text: str


@dataclass(frozen=True)
class Health(_Event):
    """The state of the field in plain words (empty, fog, fills its space; or none any more).

    It is judged every `HEALTH_INTERVAL` steps, and told of when it changes.
    """

    text: str


@dataclass(frozen=True)
class Preview(_Event):
    """A picture of the object as it is now was written to `path`.

    `seconds` is what it took of a run's time; None where it was not taken in the midst of one.
    """

    path: Path
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result(_Event):
    """The run is finished: its folder and the content of its result.json."""

    folder: Path
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DistillStep(_Event):
    """Some steps of a distillation are done: the last loss of each player, over all stages."""

    stage: str
    step: int
    steps: int
    losses: dict[str, float]
    eta_seconds: float


@dataclass(frozen=True, kw_only=True)
class DistillPicture(_Event):
    """A picture of the student after `step` steps is in its folder.

    `to_teacher` is the distance of the samples in it to the teacher's of the same noise (None
    where there is no such measure).
    """

    stage: str
    step: int
    steps: int
    to_teacher: float | None


@dataclass(frozen=True, kw_only=True)
class Distilled(_Event):
    """A student is written to `folder`; `figures` are its distances to data and teacher.

    `teacher` holds the same of its teacher, in as many evaluations (`nfe`) and in many.
    """

    folder: Path
    figures: dict[str, float]
    teacher: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Failure(_Event):
    """The command ends without a result."""

    text: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Item(_Event):
    """One prompt of a batch came to its end ("ok", "skipped", "failed", "timeout", "oom").

    `line` is its line in the list of prompts, `folder` its run's folder if there is one, `done`
    of `total` items are finished with it.
    """

    line: int
    prompt: str
    outcome: str
    folder: Path | None
    seconds: float | None
    reason: str | None
    done: int
    total: int
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Summary(_Event):
    """A batch is finished: how many items came to which end, and the page that shows them.

    `index` is None where that could not be written; a warning has said why.
    """

    ok: int
    skipped: int
    failed: int
    unfinished: int
    bad_lines: int
    seconds: float
    index: Path | None


Event = (
    Stage
    | Step
    | Warning
    | Health
    | Preview
    | Result
    | Failure
    | Item
    | Summary
    | DistillStep
    | DistillPicture
    | Distilled
)
Listener = Callable[[Event], None]


def ignore_event(_: Event) -> None:
    """A listener that listens to nothing."""
