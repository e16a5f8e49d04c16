"""A run's events as a live display on a terminal, or as a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .events import (
    Distilled,
    DistillStep,
    Event,
    Health,
    Item,
    Listener,
    Preview,
    Result,
    Stage,
    Step,
    Summary,
    Warning,
)

PLAIN_LINES = 10
"""Lines of progress for one optimisation where there is no terminal."""


@contextlib.contextmanager
def progress() -> Iterator[Listener]:
    """A listener that shows events on stderr until the block ends."""
    console = Console(file=sys.stderr, highlight=False)
    if console.is_terminal:
        display = _Bar(console)
        with display.progress:
            yield display.show
    else:
        yield _Lines(console).show


def step_text(event: Step) -> str:
    """The live line of a step: time of diffusion, opacity, pace."""
    parts = [f"t {event.timestep:.2f}", f"opacity {event.opacity:.2f}"]
    if event.agreement is not None:
        parts.append(f"agreement {event.agreement:.2f}")
    if event.resolution is not None:
        parts.append(f"{event.resolution} px")
    parts.append(f"{event.step_seconds:.2f} s/step")
    return "  ".join(parts)


def eta_text(seconds: float) -> str:
    """A remaining time such as 1:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def _result_line(event: Result) -> str:
    seconds = event.result.get("seconds", {}).get("total")
    faces = event.result.get("mesh", {}).get("faces")
    parts = ["done"]
    if seconds is not None:
        parts.append(f"in {eta_text(seconds)}")
    if faces is not None:
        parts.append(f"{faces} faces")
    return ", ".join(parts)


def _message(event: Event) -> str | None:
    if isinstance(event, Warning):
        return f"warning: {event.text}"
    if isinstance(event, Health):
        return f"health: {event.text}"
    if isinstance(event, Preview):
        return f"preview: {event.path}"
    if isinstance(event, Result):
        return _result_line(event)
    if isinstance(event, Distilled):
        return _distilled_lines(event)
    if isinstance(event, Item):
        return _item_line(event)
    if isinstance(event, Summary):
        return _summary_line(event)
    return None


def _distill_line(event: DistillStep) -> str:
    losses = "  ".join(f"{name} {value:.4g}" for name, value in event.losses.items())
    return (
        f"  {event.stage}: step {event.step}/{event.steps}  {losses}  "
        f"ETA {eta_text(event.eta_seconds)}"
    )


def _distilled_lines(event: Distilled) -> str:
    """The student's figures, and its teacher's below them, by name."""
    rows = [("student", event.figures)]
    rows += [(f"teacher, {row['nfe']:g} steps", row) for row in event.teacher]
    return "\n".join(
        f"{name:<18}" + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "nfe")
        for name, row in rows
    )


def _item_line(event: Item) -> str:
    parts = [f"[{event.done}/{event.total}] {event.outcome}: {event.prompt}"]
    if event.seconds is not None:
        parts.append(eta_text(event.seconds))
    if event.eta_seconds is not None and event.done < event.total:
        parts.append(f"ETA {eta_text(event.eta_seconds)}")
    if event.reason is not None:
        parts.append(event.reason)
    return "  ".join(parts)


def _summary_line(event: Summary) -> str:
    named = ("ok", "skipped", "failed", "unfinished")
    counts = [f"{getattr(event, name)} {name}" for name in named if getattr(event, name)]
    if event.bad_lines:
        counts.append(f"{event.bad_lines} bad lines left out")
    return f"{', '.join(counts) or 'nothing to do'} in {eta_text(event.seconds)}"


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = -1

    def show(self, event: Event) -> None:
        if isinstance(event, Stage):
            self._console.print(f"{event.name} ...", markup=False, soft_wrap=True)
            self._last = -1
        elif isinstance(event, Step):
            part = event.step * PLAIN_LINES // event.steps
            if part > self._last:
                self._last = part
                text = f"  step {event.step}/{event.steps}  {step_text(event)}"
                text += f"  ETA {eta_text(event.eta_seconds)}"
                self._console.print(text, markup=False, soft_wrap=True)
        elif isinstance(event, DistillStep):
            part = event.step * PLAIN_LINES // event.steps
            if part > self._last:
                self._last = part
                self._console.print(_distill_line(event), markup=False, soft_wrap=True)
        else:
            text = _message(event)
            if text is not None:
                self._console.print(text, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, Stage):
            self._finish()
            self._task = self.progress.add_task(escape(event.name), total=None, detail="")
        elif isinstance(event, Step):
            if self._task is not None:
                detail = f"{event.step}/{event.steps}  {step_text(event)}"
                detail += f"  ETA {eta_text(event.eta_seconds)}"
                self.progress.update(
                    self._task, total=event.steps, completed=event.step, detail=detail
                )
        elif isinstance(event, DistillStep):
            if self._task is None:
                self._task = self.progress.add_task("distill", total=event.steps, detail="")
            self.progress.update(
                self._task, completed=event.step, detail=escape(_distill_line(event).strip())
            )
        else:
            if isinstance(event, (Result, Distilled)):
                self._finish()
            text = _message(event)
            if text is not None:
                self.progress.console.print(text, markup=False, soft_wrap=True)

    def _finish(self) -> None:
        if self._task is not None:
            self.progress.update(self._task, total=1, completed=1)
            self._task = None
