"""The command that makes the same as a job does."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from sds3d.config import GenerateConfig
from sds3d.presets import generate_config


def command_line(config: GenerateConfig) -> str:
    """`sds3d generate ...` with every option that differs from its preset, as a shell takes it."""
    plain = generate_config(config.preset, prompt=config.prompt)
    words = ["sds3d", "generate", "--preset", config.preset]
    # With "=", so that a value may begin like an option.
    words += [
        f"{_flag(name)}={getattr(config, name)}"
        for name in ("seed", "negative_prompt", "teacher", "out")
        if getattr(config, name) != getattr(plain, name)
    ]
    for part in ("optimize", "mesh"):
        words += _differences(getattr(plain, part), getattr(config, part))
    return shlex.join([*words, "--", config.prompt])


def _differences(before: Any, after: Any) -> list[str]:
    words: list[str] = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(old):
            words += _differences(old, new)
        elif isinstance(new, bool):
            # One flag, named for what it changes the default to.
            words += [] if old == new else [_flag(field.name if new else f"no_{field.name}")]
        elif old != new:
            values = new if isinstance(new, tuple) else (new,)
            words += [_flag(field.name), *map(str, values)]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
