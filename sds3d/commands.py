"""The options of each command, for tyro; what they mean is in the configs that they hold."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .config import DeviceName, Format, GenerateConfig, PresetName

JSON_HELP = "Print JSON, one value per line, the result last."
JsonFlag = Annotated[bool, tyro.conf.arg(help=JSON_HELP)]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Make a textured mesh from a prompt. The last line printed is the folder that holds it."""

    prompt: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="PROMPT", help_behavior_hint="(required, except with --resume)"),
    ] = ""
    """What to make, e.g. "a red mushroom"."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with an interrupted run's folder, with its own options."""
    overwrite: bool = False
    """Start anew where the folder already holds this run, or a part of it."""
    json: JsonFlag = False
    config: GenerateConfig


@dataclass(frozen=True, kw_only=True)
class Export:
    """Make a finished run's files anew; an option that is left out stays as it was."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    formats: Annotated[tuple[Format, ...] | None, tyro.conf.arg(metavar="{glb,obj} ...")] = None
    """Mesh files to write."""
    max_faces: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Most triangles of the mesh."""
    texture_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Side of the baked texture in pixels; 0 stores one colour per vertex instead."""
    device: DeviceName = "auto"
    """Where to compute; auto is where the run was made."""
    json: JsonFlag = False


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine has and what is missing; exit code 1 if sds3d cannot run."""

    teacher: str = ""
    """The teacher whose weights are looked at; left out, it is the preset's."""
    preset: PresetName | None = None
    """The preset whose steps are counted with that teacher, a second stage's with its own; left
    out, the largest of the published recipes for it."""
    json: JsonFlag = False


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List every distillation method (family, student, needs, NFE, reference) and every sampler.

    With --json the methods alone."""

    json: JsonFlag = False


def with_json(config: type[Any]) -> type[Any]:
    """A command of a config's options and `--json`: fields `config` and `json`."""
    command = make_dataclass(
        "Command",
        [("config", config), ("json", JsonFlag, field(default=False))],
        frozen=True,
        kw_only=True,
    )
    command.__doc__ = config.__doc__
    return command
