"""The user's own file of settings: where teachers lie on this machine, and how they are held.

# ~/.config/sds3d/config.toml ($XDG_CONFIG_HOME is followed; %APPDATA%\\sds3d on Windows)
allow_download = false       # true lets --teacher fetch what is not on disk yet

[teachers]                   # names for --teacher; they win over the program's own
sd21 = "/data/stable-diffusion-2-1-base"

[teacher]                    # how weights are held
dtype = "float16"
image_size = 512
attention_slicing = true
checkpoint_vae = true
offload_text_encoders = true
"""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """What the file says; everything has a default.

    Attributes:
        allow_download: Whether weights may be fetched.
        teachers: Ids or folders by name.
        teacher: Fields of `core.teachers.teacher.TeacherOptions`.
    """

    allow_download: bool = False
    teachers: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)


_OPTIONS: dict[str, type] = {
    "dtype": str,
    "image_size": int,
    "attention_slicing": bool,
    "checkpoint_vae": bool,
    "offload_text_encoders": bool,
}


def config_path() -> Path:
    """Where the file is looked for."""
    if sys.platform == "win32" and "APPDATA" in os.environ:
        return Path(os.environ["APPDATA"]) / "sds3d" / "config.toml"
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sds3d" / "config.toml"


def read_user_config() -> UserConfig:
    """The user's settings; the defaults where there is no file.

    Raises ConfigError that names the file and the entry.
    """
    path = config_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return UserConfig()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be read ({reason}): correct or remove it") from error
    kinds: dict[str, type] = {"allow_download": bool, "teachers": dict, "teacher": dict}
    _check(path, "", document, kinds)
    teachers = document.get("teachers", {})
    _check(path, "teachers.", teachers, dict.fromkeys(teachers, str))
    _check(path, "teacher.", document.get("teacher", {}), _OPTIONS)
    return UserConfig(**document)


def _check(path: Path, prefix: str, table: dict[str, Any], kinds: dict[str, type]) -> None:
    for name, value in table.items():
        if name not in kinds:
            raise ConfigError(
                f"{path}: {prefix}{name} is no setting: give one of {', '.join(kinds)}"
            )
        # Not isinstance: true is no number here.
        if type(value) is not kinds[name]:
            raise ConfigError(
                f"{path}: {prefix}{name} is {value!r}: give a value of type {kinds[name].__name__}"
            )
