"""What the processes do: a run through the command line, which tells of its steps as it goes."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sds3d import cli
from sds3d.events import Event, Listener, Step
from sds3d.generate import Parts

from .cheap import GreyTeacher, tiny_optimize, write_field
from .processes import Tell
from .strike import Strike

AtStep = Callable[[int], None]


def run_command(words: list[str], tell: Tell) -> int:
    """The command line. Tells "begin", and "step <n> <time>" after each step."""
    return _command(words, tell, lambda _: None)


def run_command_at(words: list[str], start: float, tell: Tell) -> int:
    """The same, not before the clock says `start`, to meet another process there."""
    time.sleep(max(0.0, start - time.monotonic()))
    return _command(words, tell, lambda _: None)


def run_and_die(words: list[str], folder: Path, deadly: int, tell: Tell) -> int:
    """The same, and SIGKILL at the `deadly`-th call that changes something below `folder`.

    With 0 nothing is struck; "calls <n>" is told at the end.
    """
    strike = Strike(folder, deadly)
    strike.begin()
    code = _command(words, tell, lambda _: None)
    tell(f"calls {strike.calls}")
    return code


def run_and_fill(words: list[str], folder: Path, step: int, left: int, tell: Tell) -> int:
    """The same; when `step` is made, the disk of `folder` is filled but for `left` bytes.

    The step after the last one is the export.
    """
    ballast = folder / "ballast"

    def fill(made: int) -> None:
        if made == step:
            disk = os.statvfs(folder)
            descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o644)
            os.posix_fallocate(descriptor, 0, max(1, disk.f_bavail * disk.f_frsize - left))
            os.close(descriptor)

    return _command(words, tell, fill)


def run_and_limit(words: list[str], step: int, left: int, tell: Tell) -> int:
    """The same; when `step` is made, no file may grow beyond `left` bytes any more."""

    def limit(made: int) -> None:
        if made == step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))

    return _command(words, tell, limit)


def _command(words: list[str], tell: Tell, at_step: AtStep) -> int:
    def watched(config: Any, teacher: Any, *, on_event: Listener, **how: Any) -> Any:
        def listen(event: Event) -> None:
            if isinstance(event, Step):
                tell(f"step {event.step} {time.monotonic()}")
                at_step(event.step)
            on_event(event)

        return tiny_optimize(config, teacher, on_event=listen, **how)

    def exported(optimized: Any, config: Any, folder: Path, on_event: Listener) -> Any:
        at_step(config.optimize.total_steps + 1)
        return write_field(optimized, config, folder, on_event)

    def begun(*_: Any) -> Any:
        tell("begin")
        return GreyTeacher()

    parts = Parts(load_teacher=begun, optimize=watched, write_files=exported)
    # As the process's own command line.
    sys.argv = ["sds3d", *words]
    try:
        return cli.main(parts=parts)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def steps_told(told: list[str]) -> list[tuple[int, float]]:
    """The steps that a child told of, with their times."""
    words = [line.split() for line in told]
    return [(int(word[1]), float(word[2])) for word in words if word[0] == "step"]
