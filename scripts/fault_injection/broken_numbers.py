"""NaN and infinity from the teacher or in a gradient: found in their step, undone, and survived."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from sds3d.errors import Diverged
from sds3d.events import Event, Step, Warning
from sds3d.generate import generate
from sds3d.optimize import MOST_ROLLBACKS
from sds3d.runs import RunFolder

from .cheap import STEPS, GreyTeacher, make_config, make_parts, tiny_optimize
from .tally import Tally, Trials

NUMBERS = (math.nan, math.inf, -math.inf)


@dataclass
class BrokenTeacher(GreyTeacher):
    """Grey, but for its next call when `armed`, and for the call number `broken_call`."""

    number: float = math.nan
    whole: bool = True
    broken_call: int | None = None
    armed: bool = False
    calls: int = field(default=0, init=False)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        good = super().__call__(x_t, t, cond)
        self.calls += 1
        if not self.armed and self.calls - 1 != self.broken_call:
            return good
        self.armed = False
        x0 = good.x0.clone()
        (x0 if self.whole else x0[:1, :1, :1, :1]).fill_(self.number)
        return Prediction.from_x0(x0, x_t, t, self.schedule)


@dataclass
class Breaker:
    """Shown the loop after each step, it breaks the next one: a k-th time after step `after[k]`.

    Each break leads back to step 0, from where the next one's step is reached anew. Either the
    teacher's answer is broken or, where `in_gradient`, what the field's first parameter gets.
    """

    teacher: BrokenTeacher
    after: list[int]
    in_gradient: bool

    def __call__(self, loop: Any) -> None:
        if not self.after or loop.step != self.after[0]:
            return
        del self.after[0]
        if not self.in_gradient:
            self.teacher.armed = True
            return
        handles: list[Any] = []

        def spoil(grad: Tensor) -> Tensor:
            handles.pop().remove()
            return torch.full_like(grad, self.teacher.number)

        handles.append(next(loop.particles[0].parameters()).register_hook(spoil))


def break_numbers(trials: Trials) -> Tally:
    """One to four broken steps in a run: three are survived, and a fourth is named.

    One time in four any one call of the teacher is broken instead, whatever it was asked for.
    """
    tally = Tally()
    for trial in trials.each(tally):
        draw = trial.draw
        teacher = BrokenTeacher(number=draw.choice(NUMBERS), whole=draw.random() < 0.5)
        times: int | None = None
        breaker = Breaker(teacher=teacher, after=[], in_gradient=draw.random() < 0.5)
        if draw.random() < 0.25:
            teacher.broken_call = draw.randrange(2 * STEPS)
            tally.seen["in any call of the teacher"] += 1
        else:
            times = draw.randint(1, MOST_ROLLBACKS + 1)
            breaker.after = [draw.randint(1, STEPS - 1) for _ in range(times)]
            place = "in a gradient" if breaker.in_gradient else "in the teacher's answer"
            tally.seen[place] += 1
        _run(tally, trial.folder / "out", breaker, times)
    return tally


def _run(tally: Tally, out: Path, breaker: Breaker, times: int | None) -> None:
    heard: list[Event] = []

    def watched(config: Any, teacher: Any, **how: Any) -> Any:
        return tiny_optimize(config, teacher, observe=breaker, **how)

    parts = make_parts(teacher=breaker.teacher, optimize=watched)
    try:
        made = generate(make_config(out), on_event=heard.append, parts=parts)
    except Diverged as error:
        if times is None or times <= MOST_ROLLBACKS or "--guidance-scale" not in str(error):
            tally.lose(f"given up after {times}: {error}")
        tally.seen["four times, and named"] += 1
        return
    except Exception as error:
        tally.blame(repr(error))
        return
    told = [event.text for event in heard if isinstance(event, Warning)]
    undone = [text for text in told if "was not finite: back to step" in text]
    if times is not None and len(undone) != times:
        tally.tear(f"{times} broken steps, and told of: {told}")
    if any(isinstance(event, Step) and not _is_finite(event) for event in heard):
        tally.tear("a step was told with numbers that are not finite")
    run = RunFolder.open(made.folder)
    state = run.checkpoint.load()
    values = {} if state is None else state[0]
    floats = [value for value in values.values() if value.is_floating_point()]
    if not floats or not all(bool(value.isfinite().all()) for value in floats):
        tally.tear("the last checkpoint is not finite")
    if problems := run.verify():
        tally.tear(", ".join(problems))
    tally.seen["undone, and a finite finish"] += 1


def _is_finite(event: Step) -> bool:
    numbers = (event.opacity, event.timestep, event.agreement)
    return all(value is None or math.isfinite(value) for value in numbers)
