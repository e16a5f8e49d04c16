"""kill -9 at random times, and inside the calls that save and publish; then the same command again.

A step that was made and reported may be lost if its save had not ended: saves here come with every
step, so at most one. Everything else must be there, and the finished run must be the undisturbed
one's bits.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sds3d.errors import RunError
from sds3d.events import Event, Warning
from sds3d.runs import RunFolder

from .cheap import STEPS, hashes, run_folder, words_of
from .children import run_and_die, run_command, steps_told
from .processes import Child
from .tally import Tally, Trial, Trials

MOST_DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run that nothing disturbed: its files, its seconds, and its calls that change a folder."""

    hashes: dict[str, str]
    seconds: float
    calls: int


def undisturbed(folder: Path) -> Undisturbed:
    """Make such a run below `folder`."""
    out = folder / "undisturbed"
    child = Child(run_and_die, words_of(out), out, 0, folder=folder)
    child.wait_for("begin")
    began = time.monotonic()
    said = child.end()
    made = run_folder(out)
    files = {} if made is None else hashes(made)
    if said.code != 0 or not files:
        raise RuntimeError(f"the undisturbed run failed: {said.err}")
    (calls,) = (int(line.split()[1]) for line in child.told if line.startswith("calls"))
    return Undisturbed(hashes=files, seconds=time.monotonic() - began, calls=calls)


def kill_runs(trials: Trials) -> Tally:
    """Every other kill comes at a random time, the others at a random call."""
    tally = Tally()
    whole = undisturbed(trials.folder)
    for trial in trials.each(tally):
        out, last = _kill_one(tally, trial, whole)
        reached = examine(tally, out, last)
        go_on(tally, trial.folder, out, whole.hashes, reached)
    return tally


def _kill_one(tally: Tally, trial: Trial, whole: Undisturbed) -> tuple[Path, int]:
    """Kill a run, another one where it was faster; its place and the last step that it told of."""
    by_call = trial.number % 2 == 1
    for draw in range(MOST_DRAWS):
        out = trial.folder / f"out-{draw}"
        deadly = trial.draw.randint(1, whole.calls) if by_call else 0
        child = Child(run_and_die, words_of(out), out, deadly, folder=trial.folder)
        if not by_call:
            child.wait_for("begin")
            time.sleep(trial.draw.random() * whole.seconds)
            child.send(signal.SIGKILL)
        said = child.end()
        steps = steps_told(child.told)
        last = steps[-1][0] if steps else 0
        if said.code == -signal.SIGKILL:
            tally.seen["at a call" if by_call else "at a random time"] += 1
            tally.seen["before the last step" if last < STEPS else "after the last step"] += 1
            tally.seen["left a partial file"] += any(out.rglob("*.partial"))
            return out, last
        if said.code != 0:
            tally.blame(said.err)
        tally.seen["was faster"] += 1
    raise RuntimeError("the run is always faster than its kill")


def examine(tally: Tally, out: Path, last_step: int) -> int:
    """Whether what is left below `out` is whole; the step from which it can go on."""
    folder = run_folder(out)
    if folder is None or not (folder / "config.json").is_file():
        if last_step > 1:
            tally.lose(f"step {last_step} was made, and there is no run's folder")
        return 0
    heard: list[Event] = []
    try:
        run = RunFolder.open(folder, heard.append)
        state = run.checkpoint.load()
    except RunError as error:
        tally.tear(str(error))
        return 0
    for event in heard:
        if isinstance(event, Warning):
            tally.tear(event.text)
    if (folder / "result.json").exists() and (problems := run.verify()):
        tally.tear(", ".join(problems))
    step = 0 if state is None else int(state[1]["step"])
    if step < last_step - 1:
        tally.lose(f"step {last_step} was made and the checkpoint is of step {step}")
    return step


def go_on(tally: Tally, folder: Path, out: Path, expected: dict[str, str], reached: int) -> None:
    """The same command again: from where the run was, and to the same bits."""
    child = Child(run_command, words_of(out), folder=folder / "again")
    said = child.end()
    made = run_folder(out)
    steps = [step for step, _ in steps_told(child.told)]
    if said.code != 0 or made is None:
        tally.blame(f"exit code {said.code} of the same command again: {said.err}")
        return
    if steps != list(range(reached + 1, STEPS + 1)):
        tally.lose(f"the checkpoint was of step {reached}, and then came the steps {steps}")
    if hashes(made) != expected:
        tally.tear("the finished run's files are not those of an undisturbed run")
    for line in (made / "events.jsonl").read_text("utf-8", "replace").splitlines():
        try:
            json.loads(line)
        except ValueError:
            tally.seen["a cut line in the log"] += 1
            if line.count('{"event"') > 1:
                tally.tear(f"a cut line spoilt the next in events.jsonl: {line[:200]!r}")
