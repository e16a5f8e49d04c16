"""Named instances of the options. An option given beside a preset wins over it."""

from __future__ import annotations

from typing import Any

from .config import GenerateConfig, MeshConfig, PresetName
from .errors import ConfigError
from .optimize_config import FieldOptions, OptimizeConfig
from .preset import Preset
from .recipes import RECIPES

FAST = Preset(
    optimize=OptimizeConfig(steps=400),
    mesh=MeshConfig(mesh_resolution=96, max_faces=20_000, texture_size=512),
)
"""A first look: 16 to 19 s on two cores (docs/performance.md), measured in docs/evaluation.md."""

BALANCED = Preset(optimize=OptimizeConfig(), mesh=MeshConfig())
"""The default: 48 s on two cores (docs/performance.md)."""

QUALITY = Preset(
    optimize=OptimizeConfig(
        steps=3000,
        step_size=0.025,
        field=FieldOptions(n_levels=12, log2_table_size=16, finest_resolution=256),
    ),
    mesh=MeshConfig(mesh_resolution=192, texture_size=2048),
)
"""The most that the teacher gives."""

PRESETS: dict[PresetName, Preset] = {
    "fast": FAST,
    "balanced": BALANCED,
    "quality": QUALITY,
    **RECIPES,
}
"""Of the first three docs/performance.md and docs/evaluation.md say what was measured, with the
embedded teacher; the recipes are not measured."""


def generate_config(
    preset: PresetName = "balanced", *, prompt: str, **options: Any
) -> GenerateConfig:
    """The config of a preset for one prompt; `options` are fields of GenerateConfig.

    Raises ConfigError for an unknown preset or an option out of range, PromptError for a prompt
    that cannot be used.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}: give one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    fields: dict[str, Any] = {
        "optimize": chosen.optimize,
        "mesh": chosen.mesh,
        "teacher": chosen.teacher,
        **options,
    }
    return GenerateConfig(prompt=prompt, preset=preset, **fields)


def missing_teacher(config: GenerateConfig, error: str) -> str:
    """What to say where a run's teacher cannot be had: which preset asked for it, if one did."""
    preset = PRESETS[config.preset]
    if config.teacher != preset.teacher or config.preset not in RECIPES:
        return error
    asked = f"--preset {config.preset} is a recipe for the teacher {preset.teacher}"
    if not preset.obtain:
        return f"{asked}: {error}"
    from .user_config import config_path

    return (
        f"{asked}, which is not here: {preset.obtain} under [teachers] in {config_path()}, or give "
        "another one with --teacher"
    )
