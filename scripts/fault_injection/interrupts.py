"""Ctrl-C and SIGTERM at random times, one in three times twice: a stop within a step, and no loss.

A step that is being made when the signal comes is finished, saved, and the last. A second signal
stops at once, and may cost the step that is being made.
"""

from __future__ import annotations

import signal
import time

from .cheap import STEPS, words_of
from .children import run_command, steps_told
from .kills import examine, go_on, undisturbed
from .processes import Child
from .tally import Tally, Trials

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def interrupt_runs(trials: Trials) -> Tally:
    """Signals between the loading of the teacher and the end of the export."""
    tally = Tally()
    whole = undisturbed(trials.folder)
    for trial in trials.each(tally):
        out, draw = trial.folder / "out", trial.draw
        number = draw.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
        twice = draw.random() < 1 / 3
        child = Child(run_command, words_of(out), folder=trial.folder)
        child.wait_for("begin")
        time.sleep(draw.random() * whole.seconds)
        child.send(number)
        sent = time.monotonic()
        if twice:
            time.sleep(draw.random() * whole.seconds / STEPS)
            child.send(number)
        said = child.end()
        steps = steps_told(child.told)
        last = steps[-1][0] if steps else 0
        if said.is_crash or said.code not in (0, CODES[number]):
            tally.blame(f"exit code {said.code} after {number.name}: {said.err}")
        elif said.code == 0:
            tally.seen["was faster"] += 1
        else:
            tally.seen[f"stopped by {number.name}{', twice' if twice else ''}"] += 1
            if last > 0 and "sds3d generate --resume" not in said.err:
                tally.lose(f"nothing was said of how to go on: {said.err}")
        late = [step for step, at in steps if at > sent]
        if len(late) > 1:
            tally.lose(f"not stopped within a step: steps {late} ended after the signal")
        reached = examine(tally, out, last)
        if not twice and reached < last:
            tally.lose(f"step {last} was made, and step {reached} was saved")
        go_on(tally, trial.folder, out, whole.hashes, reached)
    return tally
