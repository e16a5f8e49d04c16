"""Two processes that want the same run's folder at the same moment: one works, none disturbs it."""

from __future__ import annotations

import time

from .cheap import hashes, run_folder, words_of
from .children import run_command_at, steps_told
from .kills import examine, undisturbed
from .processes import Child
from .tally import Tally, Trials

HEAD_START_SECONDS = 0.25
"""Until both processes wait for the moment."""


def share_folder(trials: Trials) -> Tally:
    """Two of the same command, each once in three times with --overwrite."""
    tally = Tally()
    whole = undisturbed(trials.folder)
    for trial in trials.each(tally):
        out = trial.folder / "out"
        moment = time.monotonic() + HEAD_START_SECONDS
        # Together, or the second somewhere in the first one's run, or soon after it.
        later = trial.draw.choice((0.0, 2 * trial.draw.random())) * whole.seconds
        starts = (moment, moment + later)
        children = [
            Child(
                run_command_at,
                words_of(out) + (["--overwrite"] if trial.draw.random() < 1 / 3 else []),
                start,
                folder=trial.folder / str(index),
            )
            for index, start in enumerate(starts)
        ]
        said = [child.end() for child in children]
        for one in said:
            refused = one.code == 2 and "another process is working in" in one.err
            if one.is_crash or not (one.code == 0 or refused):
                tally.blame(f"exit code {one.code}: {one.err}")
            tally.seen["refused"] += refused
        if all(one.code != 0 for one in said):
            tally.lose("neither made the run")
        computed = [bool(steps_told(child.told)) for child in children]
        both = all(one.code == 0 for one in said)
        tally.seen["made twice, one after the other"] += both and all(computed)
        tally.seen["made by one, taken by the other"] += both and not all(computed)
        examine(tally, out, 0)
        folder = run_folder(out)
        if folder is None or hashes(folder) != whole.hashes:
            tally.tear("the run's files are not those of one process alone")
    return tally
