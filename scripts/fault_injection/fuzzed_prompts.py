"""Lists of prompts made of good lines, of lines that are wrong in a known way, and of noise.

A list with a bad line must end the command with 2 before anything is made, naming the line.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from sds3d.batch.config import BatchConfig
from sds3d.batch.prompts import SHOWN_FAULTS, read_prompts
from sds3d.config_json import from_dict, to_dict
from sds3d.errors import BadInput

from .cheap import command
from .tally import Tally, Trial, Trials

GOOD = (
    b'{"prompt": "a red mushroom"}',
    b'{"prompt": "a caf\xc3\xa9 table", "seed": 7}',
    b'{"seed": 9223372036854775807, "prompt": "  a blue\\tcar ", "preset": "fast"}',
    b'{"prompt": "a hat", "steps": 1, "negative_prompt": "fog", "teacher": "toybox"}',
)
BAD = (
    b'{"prompt": ""}',
    b'{"prompt": "a car", "seed": -1}',
    b'{"prompt": "a car", "seed": 9223372036854775808}',
    b'{"prompt": "a car", "seed": 1.0}',
    b'{"prompt": "a car", "seed": null}',
    b'{"prompt": "a car", "steps": 0}',
    b'{"prompt": "a car", "steps": true}',
    b'{"prompt": "a car", "preset": "slow"}',
    b'{"prompt": "a car", "preset": 1}',
    b'{"prompt": "a car", "teacher": ["toybox"]}',
    b'{"prompt": "a car", "guidance": 4}',
    b'{"prompt": "a \\u0007 car"}',
    b'{"prompt": "a \\ud800 car"}',
    b'{"prompt": ["a car"]}',
    b'{"seed": 1}',
    b'{"prompt": "a car"',
    b'{"prompt": "a car"} {"prompt": "a hat"}',
    b'["a car"]',
    b'"a car"',
    b"NaN",
    b"a red mushroom",
    b'{"prompt": "caf\xe9"}',
    b"[" * 5000,
    b'{"prompt": "' + b"m" * 1001 + b'"}',
    b'{"prompt": "' + b"m" * 200_000 + b'"}',
)
EMPTY = (b"", b"  ", b"\t", b"\r")
NOISE = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\n", b"\r\n", b"\xff", b"\x00",
    b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\x1b[2J", b"\\ud800", b"#", b" ",
    b"1e999", b"-1", b"NaN", b"9" * 5000, b"null", b"true", b"a red hat", b'{"prompt": "a car"}',
    b'"seed"', b'{"prompt": ',
)  # fmt: skip


def fuzz_prompts(trials: Trials) -> Tally:
    """Half of the lists of known lines, half of noise; JSON lines and plain text in turn."""
    tally = Tally()
    for trial in trials.each(tally):
        bad: set[int] | None = None
        suffix = ".jsonl"
        if trial.number % 2 == 0:
            data, bad = _known(trial.draw)
        else:
            data = b"".join(trial.draw.choices(NOISE, k=trial.draw.randint(0, 40)))
            suffix = trial.draw.choice((".jsonl", ".txt"))
        path = trial.folder / f"list{suffix}"
        path.write_bytes(data)
        _try(tally, trial, path, bad)
    return tally


def _known(draw: random.Random) -> tuple[bytes, set[int]]:
    """A list, and the numbers of its bad lines."""
    lines, bad = [], set()
    for number in range(1, draw.randint(1, 20) + 1):
        kind = draw.choices((GOOD, BAD, EMPTY), weights=(6, 1, 1))[0]
        lines.append(draw.choice(kind))
        if kind is BAD:
            bad.add(number)
    return draw.choice((b"\n", b"\r\n")).join(lines), bad


def _try(tally: Tally, trial: Trial, path: Path, bad: set[int] | None) -> None:
    where, out = f"try {trial.number}", trial.folder / "out"
    try:
        found = read_prompts(BatchConfig(prompts=str(path), skip_bad=True))
        faults = {number for number, _ in found.faults}
        configs = [line.config for line in found.lines]
    except BadInput:
        # Not one good line: what is wrong with them is said by the command alone.
        faults, configs = bad or {0}, []
    except Exception as error:
        tally.blame(f"{where}: {error!r}")
        return
    if bad is not None and faults != (bad or faults):
        tally.tear(f"{where}: the bad lines are {sorted(bad)}, and named are {sorted(faults)}")
    for config in configs:
        if from_dict(json.loads(json.dumps(to_dict(config)))) != config:
            tally.tear(f"{where}: an item's options do not survive: {config}")
    if not faults:
        tally.seen["good lists"] += 1
        return
    said = command(["batch", str(path), "--out", str(out)])
    named = {int(number) for number in re.findall(r"\bline (\d+):", said.err)}
    if said.is_crash or said.code != 2 or said.out:
        tally.blame(f"{where}: exit code {said.code}: {said.err}")
    elif bad and not named:
        tally.blame(f"{where}: no line is named: {said.err}")
    elif bad and not (named <= bad and len(named) == min(len(bad), SHOWN_FAULTS)):
        tally.tear(f"{where}: the bad lines are {sorted(bad)}, and named are {sorted(named)}")
    elif not named and "holds no prompt" not in said.err:
        tally.blame(f"{where}: neither a line nor the list is named: {said.err}")
    elif out.exists():
        tally.tear(f"{where}: something was made for a list that was refused")
    else:
        tally.seen["refused by line" if named else "refused as empty"] += 1
