"""Checkpoints that a disk or a hand has damaged: noticed each time, and the one before taken.

Every damage is put into the newest checkpoint, or into both; the state is then loaded, and after
every tenth damage the run is finished by the command that a user would give.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sds3d.errors import CorruptCheckpoint, Interrupted
from sds3d.events import Event, Step, Warning
from sds3d.generate import generate
from sds3d.runs import RunFolder

from .cheap import command, hashes, make_config, make_parts, run_folder
from .tally import Tally, Trial, Trials

KINDS = ("truncated", "bit flipped", "block of zeros", "bytes appended", "older content", "emptied")
BLOCK = 512
FINISH_EACH = 10
STOP_AT = 4


@dataclass(frozen=True, kw_only=True)
class Original:
    """A run that was stopped after step 4, the states that it keeps, and what it would become."""

    folder: Path
    newest: dict[str, Tensor]
    before: dict[str, Tensor]
    hashes: dict[str, str]


def _make_original(folder: Path) -> Original:
    run_to(folder / "out", STOP_AT - 1)
    before = _state(_only(folder / "out"))
    run_to(folder / "out", STOP_AT)
    shutil.copytree(folder / "out", folder / "whole")
    said = command(["generate", "--resume", str(_only(folder / "whole"))], parts=make_parts())
    if said.code != 0:
        raise RuntimeError(f"the undamaged run does not resume: {said.err}")
    return Original(
        folder=_only(folder / "out"),
        newest=_state(_only(folder / "out")),
        before=before,
        hashes=hashes(_only(folder / "whole")),
    )


def run_to(out: Path, last: int) -> None:
    """Begin or continue the run below `out`, and stop it after the step `last`."""
    steps: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event.step)

    try:
        generate(
            make_config(out),
            on_event=listen,
            should_stop=lambda: bool(steps) and steps[-1] >= last,
            parts=make_parts(),
        )
    except Interrupted:
        return
    raise RuntimeError("the run did not stop")


def damage_checkpoints(trials: Trials) -> Tally:
    """Damage of every kind, three in four times to the newest checkpoint alone."""
    tally = Tally()
    original = _make_original(trials.folder)
    for trial in trials.each(tally):
        folder = trial.folder / original.folder.name
        shutil.copytree(original.folder, folder)
        both = trial.draw.random() < 0.25
        numbers = sorted(folder.glob("checkpoint-*.json"))
        for path in numbers if both else numbers[-1:]:
            _damage(tally, trial.draw, path)
        if trial.number % FINISH_EACH == 0:
            _finish(tally, folder, original, both=both)
        else:
            _load(tally, trial, folder, original, both=both)
    return tally


def _damage(tally: Tally, draw: random.Random, json_path: Path) -> None:
    """Change one of a checkpoint's two files, in one of the ways that disks and hands have."""
    path = draw.choice((json_path, json_path.with_suffix(".safetensors")))
    others = list(json_path.parent.glob(f"checkpoint-*{path.suffix}"))
    whole, kind = path.read_bytes(), draw.choice(KINDS)
    damaged = bytearray(whole)
    place = draw.randrange(len(whole))
    match kind:
        case "truncated":
            del damaged[place:]
        case "bit flipped":
            damaged[place] ^= 1 << draw.randrange(8)
        case "block of zeros":
            start = place // BLOCK * BLOCK
            damaged[start : start + BLOCK] = bytes(len(damaged[start : start + BLOCK]))
        case "bytes appended":
            damaged += draw.randbytes(draw.randint(1, BLOCK))
        case "older content":
            damaged = bytearray(draw.choice(others).read_bytes())
        case _:
            damaged.clear()
    if damaged == whole:
        # A block that was zeros, or the file's own content.
        damaged[place] ^= 1
        kind = "bit flipped"
    path.write_bytes(damaged)
    tally.seen[kind] += 1


def _load(tally: Tally, trial: Trial, folder: Path, original: Original, *, both: bool) -> None:
    heard: list[Event] = []
    try:
        loaded = RunFolder.open(folder, heard.append).checkpoint.load()
    except CorruptCheckpoint:
        if both:
            tally.seen["refused, both being damaged"] += 1
        else:
            tally.lose("the checkpoint before the damaged one was not taken")
        return
    except Exception as error:
        tally.blame(f"try {trial.number}: {error!r}")
        return
    if both or loaded is None or not _same(loaded[0], original.before):
        tally.tear(f"try {trial.number}: a damaged checkpoint was taken")
    elif not any(isinstance(event, Warning) for event in heard):
        tally.tear(f"try {trial.number}: the damage was not told")
    else:
        tally.seen["the one before taken"] += 1


def _finish(tally: Tally, folder: Path, original: Original, *, both: bool) -> None:
    said = command(["generate", "--resume", str(folder)], parts=make_parts())
    if said.is_crash or said.code not in (0, 2):
        tally.blame(said.err)
    elif both:
        if said.code == 0 or "--overwrite" not in said.err:
            tally.tear(f"a run with no whole checkpoint went on: {said.err}")
        tally.seen["refused, both being damaged"] += 1
    elif said.code != 0 or "continuing from the checkpoint before it" not in said.err:
        tally.lose(f"the run did not go on from the checkpoint before: {said.err}")
    elif hashes(folder) != original.hashes:
        tally.tear("the finished run's files are not those of an undamaged run")
    else:
        tally.seen["finished from the one before"] += 1


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _state(folder: Path) -> dict[str, Tensor]:
    state = RunFolder.open(folder).checkpoint.load()
    if state is None:
        raise RuntimeError(f"{folder} holds no checkpoint")
    return state[0]


def _only(out: Path) -> Path:
    folder = run_folder(out)
    if folder is None:
        raise RuntimeError(f"nothing was made in {out}")
    return folder
