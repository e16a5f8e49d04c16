"""A list of prompts, line by line: every line is an item or a fault that names it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sds3d.batch.config import BatchConfig
from sds3d.config import GenerateConfig, PresetName, TeacherName
from sds3d.errors import BadInput, ConfigError, PromptError, TeacherError
from sds3d.optimize_config import OptimizeConfig
from sds3d.presets import generate_config, missing_teacher, with_teacher
from sds3d.refine import check_refine_teacher
from sds3d.teachers import teacher_folder

MOST_LINE_BYTES = 100_000
SHOWN_FAULTS = 10

_KINDS: dict[str, type] = {
    "prompt": str,
    "seed": int,
    "preset": str,
    "steps": int,
    "teacher": str,
    "negative_prompt": str,
}


class BadLines(BadInput):
    """Lines of the list of prompts cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One item: the number of its line, from 1, and its run's options."""

    number: int
    config: GenerateConfig


@dataclass(frozen=True, kw_only=True)
class PromptList:
    """The items of a list in order, and for each bad line its number and what is wrong."""

    lines: list[Line]
    faults: list[tuple[int, str]]


def read_prompts(config: BatchConfig) -> PromptList:
    """Read the list that `config` names. Raises BadLines unless every line is good or skip_bad.

    Also raises BadInput for a list that cannot be read or holds nothing.
    """
    data = _read(config.prompts)
    found = parse(data, config, as_json=_is_json(config.prompts, data))
    if found.faults and not config.skip_bad:
        shown = [f"line {number}: {text}" for number, text in found.faults[:SHOWN_FAULTS]]
        if len(found.faults) > SHOWN_FAULTS:
            shown.append(f"and {len(found.faults) - SHOWN_FAULTS} more")
        raise BadLines(
            f"{config.prompts}: {'; '.join(shown)} (correct them, or leave them out with "
            "--skip-bad)"
        )
    if not found.lines and found.faults:
        number, text = found.faults[0]
        raise BadInput(f"{config.prompts} holds no prompt that can be used: line {number}: {text}")
    if not found.lines:
        raise BadInput(f"{config.prompts} holds no prompt: give one on each line")
    return found


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {name[:200]!r} ({reason}): give a list of prompts") from error


def _is_json(name: str, data: bytes) -> bool:
    """By the file's name; on standard input by whether the first line is an object."""
    suffix = Path(name).suffix.lower()
    if name != "-" and suffix not in (".txt", ".jsonl"):
        raise BadInput(f"{name[:200]!r} is neither .txt nor .jsonl: rename it, or give it as -")
    return suffix == ".jsonl" if name != "-" else data.lstrip().startswith(b"{")


def parse(data: bytes, config: BatchConfig, *, as_json: bool) -> PromptList:
    """The items and faults of a list's content; never raises for what a line holds."""
    lines: list[Line] = []
    faults: list[tuple[int, str]] = []
    teachers = _Teachers()
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip() or (not as_json and raw.lstrip().startswith(b"#")):
            continue
        try:
            item = _item(raw, config, as_json)
            teachers.check(item)
            lines.append(Line(number=number, config=teachers.fit(item)))
        except (ConfigError, PromptError, TeacherError) as error:
            faults.append((number, str(error)))
    return PromptList(lines=lines, faults=faults)


class _Teachers:
    """Whether the teachers of items are on this machine; each is looked for once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], str | None] = {}
        self._fitted: dict[tuple[OptimizeConfig, TeacherName], OptimizeConfig] = {}

    def fit(self, config: GenerateConfig) -> GenerateConfig:
        """The item with as many views in a step as its teacher judges together."""
        key = config.optimize, config.teacher
        if key not in self._fitted:
            self._fitted[key] = with_teacher(*key)
        return replace(config, optimize=self._fitted[key])

    def check(self, config: GenerateConfig) -> None:
        """Raise TeacherError where a stage's teacher is not here."""
        refine = config.optimize.refine
        second = refine.refine_teacher if refine.refine_steps else ""
        key = config.preset, config.teacher, second
        if key not in self._found:
            self._found[key] = self._look(config)
        if (fault := self._found[key]) is not None:
            raise TeacherError(fault)

    @staticmethod
    def _look(config: GenerateConfig) -> str | None:
        try:
            teacher_folder(config.teacher)
        except TeacherError as error:
            return missing_teacher(config, str(error))
        try:
            check_refine_teacher(config)
        except TeacherError as error:
            return str(error)
        return None


def _item(raw: bytes, config: BatchConfig, as_json: bool) -> GenerateConfig:
    if len(raw) > MOST_LINE_BYTES:
        raise PromptError(f"it is {len(raw)} bytes long: shorten it")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise PromptError("it is not valid UTF-8: save the list as UTF-8") from error
    values: dict[str, Any] = {
        "seed": config.seed,
        "preset": config.preset,
        "steps": config.steps,
        "teacher": config.teacher,
        "negative_prompt": config.negative_prompt,
    }
    values |= _object(text) if as_json else {"prompt": text}
    steps, preset = values.pop("steps"), values.pop("preset")
    if not values["teacher"]:
        del values["teacher"]
    made = generate_config(_preset(preset), device=config.device, out=config.out, **values)
    if steps is not None:
        made = replace(made, optimize=replace(made.optimize, steps=steps))
    return made


def _preset(name: Any) -> PresetName:
    # generate_config refuses a name that is none.
    return name


def _object(text: str) -> dict[str, Any]:
    """The known keys of one JSON object with values of their types."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("it is not valid JSON: write one object on each line") from error
    if not isinstance(value, dict):
        raise ConfigError('it is not a JSON object: write {"prompt": "..."}')
    for key, item in value.items():
        if key not in _KINDS:
            raise ConfigError(f"{key[:40]!r} is unknown: the keys are {', '.join(_KINDS)}")
        if type(item) is not _KINDS[key]:
            raise ConfigError(f"{key!r} must be of type {_KINDS[key].__name__}")
    if "prompt" not in value:
        raise ConfigError('it has no prompt: write {"prompt": "..."}')
    return value
