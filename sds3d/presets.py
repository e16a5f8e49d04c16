"""Named instances of the options. An option given beside a preset wins over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from .config import GenerateConfig, MeshConfig, PresetName, TeacherName
from .errors import ConfigError
from .optimize_config import FieldOptions, OptimizeConfig
from .preset import Preset
from .recipes import MVDREAM, RECIPES

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


_METHODS_OWN: dict[str, dict[str, Any]] = {
    "reconstruction": {
        "guidance_rescale": MVDREAM.optimize.guidance_rescale,
        "loss_weighting": MVDREAM.optimize.loss_weighting,
    },
}
"""What a method cannot do without, where other options have defaults that it cannot have."""


def defaults_of_method(method: str) -> dict[str, Any]:
    """The options, by name, that a method cannot do without and most presets have otherwise."""
    return dict(_METHODS_OWN.get(method, {}))


def with_method(options: OptimizeConfig, method: str) -> OptimizeConfig:
    """`options` as defaults beside --method: what they lack for it is the method's own.

    The method itself is the caller's to set. Nothing changes where the options are for it already.
    """
    if options.method == method or method not in _METHODS_OWN:
        return options
    return dataclasses.replace(options, **_METHODS_OWN[method])


def with_teacher(
    options: OptimizeConfig, teacher: TeacherName, given: Collection[str] = ()
) -> OptimizeConfig:
    """`options` with as many views in a step as the teacher judges together, or a multiple.

    Numbers of views are rounded up to it, but those of the options that the user has `given`, by
    their names, and those of steps that are not made or show the teacher no camera. The teacher is
    looked up by its folder; one that is not there changes nothing.
    """
    if not options.camera_conditioning:
        return options
    if "views_per_step" not in given:
        views = _rounded_up(options.views_per_step, teacher)
        options = dataclasses.replace(options, views_per_step=views)
    refine = options.refine
    if refine.refine_steps > 0 and "refine_views_per_step" not in given:
        views = _rounded_up(refine.refine_views_per_step, refine.refine_teacher or teacher)
        refine = dataclasses.replace(refine, refine_views_per_step=views)
    return dataclasses.replace(options, refine=refine)


def _rounded_up(views: int, teacher: TeacherName) -> int:
    from .teachers import joined_views

    together = joined_views(teacher)
    return -(-views // together) * together


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
