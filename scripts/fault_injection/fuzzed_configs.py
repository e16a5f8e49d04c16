"""Options with anything in them: a run's config.json, the user's config.toml, and the flags.

What cannot be used must end the command with 2 and one sentence that names the file and the field,
or the flag; a run whose options were changed must never go on as if they had not been.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sds3d.config_json import from_dict, run_key
from sds3d.errors import BadInput, ConfigError
from sds3d.user_config import UserConfig, config_path, read_user_config

from .cheap import WEIGHTS, command, hashes, make_parts, words_of
from .damage import run_to
from .tally import Tally, Trial, Trials

JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 64, 0.25, 1.5, 1e400, float("nan"), 10**400, -(2**70),
    "", "x", "\0", "\ud800", "fast", "cpu", "../x", "9" * 4000, [], [None], [[]], [0.5], [32],
    [0.5, 0.25], [1e308, 1e308], ["glb"], ["glb", "glb"], [[[[]]]] * 50, {}, {"steps": 1},
)  # fmt: skip
TOML = (
    b"[teachers]\n", b"[teacher]\n", b"[[teacher]]\n", b"allow_download = ", b"true\n",
    b'"yes"\n', b"1\n", b"sd21 = ", b'"/data/x"\n', b"dtype = ", b'"float16"\n',
    b"image_size = ", b"512\n", b"-1e9\n", b"\xff", b"\x00", b"=", b"[", b"]", b"\n", b"#", b'"',
    b"nonsense = 3\n", b"teacher.dtype = ", b"1979-05-27\n", b"'''", b"{a = 1}\n", b"[1, 2]\n",
    b"\\u0000", b"a" * 500,
)  # fmt: skip
TOML_LINES = (
    b"allow_download = true\n", b"allow_download = false\n", b"allow_download = 1\n",
    b'[teachers]\nsd21 = "/data/x"\n', b"[teachers]\nsd21 = 1\n", b"[teachers]\n",
    b'[teacher]\ndtype = "float16"\n', b"[teacher]\nimage_size = true\n", b"[teacher]\nsize = 1\n",
    b"teachers = 3\n", b"nonsense = [1]\n", b"# nothing\n",
)  # fmt: skip
FLAGS = (
    "--seed", "--steps", "--guidance-scale", "--preset", "--formats", "--max-faces", "--device",
    "--texture-size", "--resolutions", "--timestep-max", "--checkpoint-seconds", "--n-levels",
)  # fmt: skip
VALUES = (
    "-1", "1e999", "nan", "", "stl", "slow", "\x1b[2J", "%s", "{}", "None", "\udc80", "\0",
    "9" * 400, "tpu",
)  # fmt: skip


def fuzz_configs(trials: Trials) -> Tally:
    """In turn: a leaf or branch of config.json, its bytes, config.toml, a flag."""
    tally = Tally()
    run_to(trials.folder / "out", 2)
    (original,) = (trials.folder / "out").iterdir()
    kinds = (_document, _bytes, _settings, _flag)
    for trial in trials.each(tally):
        try:
            kinds[trial.number % len(kinds)](tally, trial, original)
        except Exception as error:
            tally.blame(f"try {trial.number}: {error!r}")
    return tally


def _document(tally: Tally, trial: Trial, original: Path) -> None:
    document = json.loads((original / "config.json").read_bytes())
    field = _spoil(trial.draw, document)
    _resume(tally, trial, original, json.dumps(document).encode(), field)


def _bytes(tally: Tally, trial: Trial, original: Path) -> None:
    data = bytearray((original / "config.json").read_bytes())
    for _ in range(trial.draw.randint(1, 4)):
        place = trial.draw.randrange(len(data))
        match trial.draw.randrange(3):
            case 0:
                data[place] = trial.draw.randrange(256)
            case 1:
                del data[place : place + trial.draw.randint(1, 100)]
            case _:
                data[place:place] = trial.draw.randbytes(trial.draw.randint(1, 8))
        data = data or bytearray(b"\0")
    _resume(tally, trial, original, bytes(data), None)


def _spoil(draw: random.Random, document: dict[str, Any]) -> str:
    """Put something into one place of the run's options, or take it away; the place's name."""
    table = document["config"]
    while True:
        name = draw.choice(sorted(table))
        if isinstance(table[name], dict) and draw.random() < 0.9:
            table = table[name]
            continue
        before = json.dumps(table)
        if draw.random() < 0.1:
            del table[name]
        elif draw.random() < 0.1:
            name = "no_such_option"
            table[name] = 1
        else:
            table[name] = draw.choice(JUNK)
        # Not the values themselves: False equals 0.
        if json.dumps(table) != before:
            return name


def _resume(tally: Tally, trial: Trial, original: Path, data: bytes, field: str | None) -> None:
    """Put `data` into a copy of the run as its config.json, and go on with it."""
    folder = trial.folder / original.name
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_bytes(data)
    said = command(["generate", "--resume", str(folder), "--device", "cpu"], parts=make_parts())
    where = f"try {trial.number}, {field}"
    if said.is_crash or said.code not in (0, 2):
        tally.blame(f"{where}: exit code {said.code}: {said.err}")
    elif said.code == 0:
        # What was changed does not determine the result: the place, the name of the teacher.
        if _key(data) != folder.name.rpartition("-")[2] or not hashes(folder):
            tally.tear(f"{where}: a run went on with other options than its own")
        tally.seen["config.json: the same run"] += 1
    else:
        named = field is None or _is_named(field, said.err)
        key = "does not match its key" in said.err
        if "config.json" not in said.err or not (named or key):
            tally.blame(f"{where}: not named: {said.err}")
        what = "by its key" if key else "as damaged" if field is None else "by the field"
        tally.seen[f"config.json: refused {what}"] += 1


def _is_named(field: str, text: str) -> bool:
    """Whether the field is named, one that it is compared with, or the prompt's own rules."""
    plain = text.replace("_", "-")
    names = (field, field.partition("_")[0], "prompt")
    return any(name.replace("_", "-") in plain for name in names)


def _key(data: bytes) -> str | None:
    try:
        return run_key(from_dict(json.loads(data)["config"]), WEIGHTS)
    except (ValueError, KeyError, TypeError, BadInput):
        return None


def _settings(tally: Tally, trial: Trial, _original: Path) -> None:
    draw = trial.draw
    with _settings_in(trial.folder) as path:
        pieces = draw.choice((TOML, TOML_LINES))
        most = 8 if pieces is TOML else 2
        path.write_bytes(b"".join(draw.choices(pieces, k=draw.randint(1, most))))
        try:
            settings = read_user_config()
        except ConfigError as error:
            if str(path) not in str(error) or "\n" in str(error):
                tally.blame(f"try {trial.number}: not one line with the file's name: {error}")
            tally.seen["config.toml: refused"] += 1
            # Every command that looks a teacher up reads the file, and says the same.
            words = ["batch", _one_prompt(trial.folder), "--teacher", "no/such", "--out"]
            said = command([*words, str(trial.folder / "made")])
            if said.is_crash or said.code != 2 or str(path) not in said.err.replace("\n", ""):
                tally.blame(f"try {trial.number}: exit code {said.code}: {said.err}")
        else:
            if not isinstance(settings, UserConfig) or not isinstance(settings.teachers, dict):
                tally.tear(f"try {trial.number}: {settings}")
            tally.seen["config.toml: good"] += 1


@contextmanager
def _settings_in(folder: Path) -> Iterator[Path]:
    """The file that is the user's config.toml meanwhile."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    try:
        path = config_path()
        path.parent.mkdir(parents=True)
        yield path
    finally:
        if before is None:
            del os.environ["XDG_CONFIG_HOME"]
        else:
            os.environ["XDG_CONFIG_HOME"] = before


def _one_prompt(folder: Path) -> str:
    path = folder / "list.txt"
    path.write_text("a red mushroom\n")
    return str(path)


def _flag(tally: Tally, trial: Trial, _original: Path) -> None:
    flag, value = trial.draw.choice(FLAGS), trial.draw.choice(VALUES)
    words = [*words_of(trial.folder / "made"), flag, value]
    said = command(words, parts=make_parts())
    if said.is_crash or said.code != 2:
        tally.blame(f"{flag} {value!r}: exit code {said.code}: {said.err}")
    elif flag not in said.err:
        tally.blame(f"{flag} {value!r}: the flag is not named: {said.err}")
    else:
        tally.seen["flag: refused"] += 1
