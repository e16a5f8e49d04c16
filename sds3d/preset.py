"""What a preset is; which there are is in `sds3d.presets`."""

from __future__ import annotations

from dataclasses import dataclass

from .config import MeshConfig, TeacherName
from .optimize_config import OptimizeConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The options that a preset sets; every other option keeps its default.

    `teacher` is what the options were chosen for; `obtain` says how one comes to have it, where
    that is not by its name.
    """

    optimize: OptimizeConfig
    mesh: MeshConfig
    teacher: TeacherName = "toybox"
    obtain: str = ""
