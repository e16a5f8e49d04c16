"""The fault table in a short form: nothing lost, nothing torn, no traceback; and what shows it.

The faults themselves are in scripts/fault_injection. Single checkpoints, lists and documents under
faults are tested beside their modules; here it is whole runs, batches and commands.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("this system cannot fork: the fault table was left out", allow_module_level=True)

import safetensors.torch

import faults as script
from fault_injection.damage import KINDS, damage_checkpoints
from fault_injection.disk import STORE_LEFT_OUT
from fault_injection.kills import examine
from fault_injection.table import FAULTS, Fault
from fault_injection.tally import SHOWN_TROUBLES, Tally, Trials
from sds3d.checkpoints import CheckpointFile

# What the tries must have come to (the beginnings of it), for the counts to mean anything.
STRUCK = {
    "kills": ("at a random time", "at a call", "before the last step", "left a partial file"),
    "damage": (*KINDS, "the one before taken", "refused, both being damaged"),
    "disk": ("RLIMIT_FSIZE set", "refused in one sentence"),
    "sharing": ("refused",),
    "numbers": ("in the teacher's answer", "in a gradient", "undone, and a finite finish"),
    "workers": ("tried again after a death",),
    "signals": ("stopped by",),
    "prompts": ("refused by line", "good lists"),
    "configs": (
        "config.json: refused by the field",
        "config.json: refused as damaged",
        "config.toml: refused",
        "flag: refused",
    ),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost_and_nothing_torn(fault: Fault, tmp_path: Path) -> None:
    tally = fault.inject(Trials(count=fault.short, seed=1, folder=tmp_path / "tries"))
    assert tally.troubles == []
    assert tally.is_clean
    assert tally.tried == fault.short
    seen = tuple(+tally.seen)
    assert [what for what in STRUCK[fault.name] if not any(s.startswith(what) for s in seen)] == []
    if STORE_LEFT_OUT in seen:
        pytest.skip(f"all but: {STORE_LEFT_OUT}")


def test_the_counts_are_not_0_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program that believes what it reads there is much to count."""

    def believe(self: CheckpointFile, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        path = self.folder / f"checkpoint-{number:06d}.safetensors"
        document = json.loads(path.with_suffix(".json").read_bytes())
        return safetensors.torch.load(path.read_bytes()), document["meta"]

    monkeypatch.setattr(CheckpointFile, "_load", believe)
    tally = damage_checkpoints(Trials(count=40, seed=1, folder=tmp_path / "tries"))
    assert tally.torn > 5
    assert tally.tracebacks > 5
    assert len(tally.troubles) == SHOWN_TROUBLES
    assert not tally.is_clean


def test_what_is_missing_is_counted_as_lost(tmp_path: Path) -> None:
    tally = Tally(tried=1)
    assert examine(tally, tmp_path / "nothing", last_step=3) == 0
    assert (tally.lost, tally.is_clean) == (1, False)
    assert "step 3" in tally.troubles[0]


def test_the_script_prints_the_counts_and_ends_with_1_where_something_is_lost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def lose(trials: Trials) -> Tally:
        tally = Tally()
        for trial in trials.each(tally):
            tally.seen[trial.draw.choice("ab")] += 1
            if trial.number == 1:
                tally.lose("a checkpoint")
        return tally

    table = (
        Fault(name="bad", what="loses one", inject=lose, full=40, short=2),
        Fault(name="other", what="is never tried", inject=lose, full=0, short=0),
    )
    words = ["--only", "bad", "--folder", str(tmp_path), "--json"]
    assert script.main([*words, "--short"], table) == 1
    out = capsys.readouterr().out
    assert "tried 2, lost 1, torn 0, tracebacks 0" in out
    assert "lost: a checkpoint" in out
    last = json.loads(out.splitlines()[-1])
    assert last["clean"] is False
    assert (last["faults"]["bad"]["tried"], last["faults"]["bad"]["lost"]) == (2, 1)
    assert script.main([*words, "--scale", "0.025"], table) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]["bad"]["tried"] == 1
    # The same seed draws the same, another one something else.
    draws = []
    for seed in ("3", "3", "4"):
        script.main([*words, "--seed", seed], table)
        draws.append(json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]["bad"]["seen"])
    assert draws[0] == draws[1] != draws[2]
    for wrong in (["--scale", "0"], ["--only", "nothing"], ["--short", "--scale", "0.5"]):
        with pytest.raises(SystemExit):
            script.main(wrong, table)
    assert list(tmp_path.iterdir()) == []
