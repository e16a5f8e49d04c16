"""Configs as JSON, and the name of a run: a key of everything that determines its result.

`to_dict` and `from_dict` are exact inverses through JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import typing
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from .config import GenerateConfig
from .optimize_config import ADDED_LATER
from .require import require

ALGORITHM_VERSION = 2
"""Raised whenever the same options would give another result than before."""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values for JSON; paths become text, tuples lists."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_dict(data: object) -> GenerateConfig:
    """The config that `to_dict` made `data` from.

    Raises ConfigError that names the field for unknown and missing fields, wrong types and values
    out of range.
    """
    return _build(GenerateConfig, data, "config")


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, at the place `where` of the document."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _build(get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is Literal:
        choices = get_args(kind)
        require(value in choices, where, value, f"give one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), where, value, "give a list")
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        require(len(value) == len(kinds), where, value, f"give {len(kinds)} values")
        items = zip(kinds, value, strict=True)
        return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(items))
    if kind is Path:
        require(isinstance(value, str), where, value, "give a path as text")
        return Path(value)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number and abs(value) <= sys.float_info.max, where, value, "give a number")
        return float(value)
    right = type(value) is kind
    require(right, where, value, f"give a value of type {getattr(kind, '__name__', kind)}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    require(isinstance(value, Mapping), where, value, "give an object with its fields")
    hints = _hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    later = {f.name for f in dataclasses.fields(kind) if f.metadata == ADDED_LATER}
    for name in value:
        require(name in names, where, name, "no such field; was it written by another version?")
    for name in names:
        known = name in value or name in later
        require(known, where, name, "field missing; was it written by another version?")
    return kind(**{n: _build(hints[n], value[n], f"{where}.{n}") for n in names if n in value})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def run_key(config: GenerateConfig, weights_sha256: str) -> str:
    """Twelve hex digits that name everything which determines the result of a run.

    The place where it is written and the interval of checkpoints do not; the teacher counts by
    its weights and not by its name.
    """
    options = to_dict(config)
    del options["out"], options["checkpoint_seconds"], options["teacher"]
    for f in dataclasses.fields(config.optimize):
        # So that the key is the one from before there was such an option.
        if f.metadata == ADDED_LATER and getattr(config.optimize, f.name) == f.default:
            del options["optimize"][f.name]
    document = {
        "algorithm": ALGORITHM_VERSION,
        "config": options,
        "weights_sha256": weights_sha256,
    }
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:12]


def slug(prompt: str) -> str:
    """At most 40 characters a-z, 0-9 and hyphens that remind of the prompt, safe in any path."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    return text[:40].rstrip("-") or "prompt"


def folder_name(config: GenerateConfig, weights_sha256: str) -> str:
    """`<slug>-<key>`: the name of a run's folder."""
    return f"{slug(config.prompt)}-{run_key(config, weights_sha256)}"
