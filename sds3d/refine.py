"""The second stage of a run: from an optimised field to a mesh that a finer teacher works on.

Magic3D (arXiv 2211.10440): a coarse field by small pictures, then its textured mesh by large ones,
with a teacher of latents. Both stages are the one loop of `sds3d.optimize`, on another
representation; the second keeps its checkpoints in a folder of its own inside the run's, and begins
at what the first one's last checkpoint says, so that an interrupted run goes on in either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import make_writable_folder, write_atomic
from .checkpoints import CheckpointFile
from .config import DeviceName, GenerateConfig, TeacherName
from .errors import ConfigError, PromptError, TeacherError
from .events import Event, Listener, Step

if TYPE_CHECKING:
    from .optimize import Optimized

__all__ = [
    "REFINE_FOLDER",
    "SecondStage",
    "check_refine_teacher",
    "check_second_stage",
    "first_stage",
    "numbered",
    "refine",
    "refine_checkpoint",
    "second_stage",
]

REFINE_FOLDER = "refine"
"""The second stage's folder in a run's."""


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """What the second stage made, and by which teacher."""

    optimized: Optimized
    teacher: dict[str, Any]


def refine_checkpoint(folder: Path, on_event: Listener) -> CheckpointFile:
    """The second stage's states in the run's folder `folder`."""
    return CheckpointFile(folder / REFINE_FOLDER, on_event)


def check_refine_teacher(config: GenerateConfig, *, fetch: bool = True) -> None:
    """Raise TeacherError where a second stage is asked for whose teacher is not here and whole.

    Nor of a kind that is no teacher. Before the first stage is spent. `fetch` is as for
    `teacher_folder`. Imports nothing heavy.
    """
    name = config.optimize.refine.refine_teacher
    if config.optimize.refine.refine_steps == 0 or not name:
        return
    from core.teachers.errors import TeacherWeightsError

    from .teachers import look_at, require_kind

    try:
        folder = look_at(name, fetch=fetch)
        require_kind(folder)
        folder.require_complete()
    except (TeacherError, TeacherWeightsError) as error:
        raise TeacherError(f"for --refine-teacher: {error}") from error


def check_second_stage(config: GenerateConfig) -> object:
    """Raise where a second stage asks of a teacher of its own what that one cannot do.

    By its outline, which is returned (None without such a teacher), before the first stage is
    spent: `config.device` is "cpu" or "cuda". Raises TeacherError, PromptError, and ConfigError
    that names the option.
    """
    refine = config.optimize.refine
    if refine.refine_steps == 0 or refine.refine_teacher in ("", config.teacher):
        return None
    stage = second_stage(config)
    from core.teachers.teacher import views_per_object

    from .embedded_guidance import check_supervision
    from .supervision import check_views
    from .teachers import check_prompt, outline_teacher

    try:
        teacher = outline_teacher(stage.teacher, stage.device)
        check_prompt(teacher, stage.prompt)
        together = views_per_object(teacher)
        check_views(stage.optimize, together, "--refine-views-per-step")
        check_supervision(
            teacher,
            stage.teacher,
            stage.optimize,
            stage.negative_prompt,
            scale_flag="--refine-guidance-scale",
        )
    except (ConfigError, PromptError, TeacherError) as error:
        raise type(error)(f"for --refine-teacher {stage.teacher}: {error}") from error
    return teacher


def first_stage(config: GenerateConfig) -> GenerateConfig:
    """The options of the first stage: steps after the plan belong to the last one."""
    if config.optimize.refine.refine_steps == 0:
        return config
    return dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, extra_steps=0))


def second_stage(config: GenerateConfig) -> GenerateConfig:
    """The options of the second stage, as the loop takes them."""
    options, refine = config.optimize, config.optimize.refine
    low, high = refine.refine_timesteps
    options = dataclasses.replace(
        options,
        steps=refine.refine_steps,
        guidance_scale=refine.refine_guidance_scale or options.guidance_scale,
        views_per_step=refine.refine_views_per_step,
        perp_neg=options.perp_neg and refine.refine_perp_neg,
        timestep_min=(low, low),
        timestep_max=(high, high),
        timestep_policy="uniform",
    )
    teacher = refine.refine_teacher or config.teacher
    return dataclasses.replace(config, teacher=teacher, optimize=options)


def numbered(on_event: Listener, before: int, after: int) -> Listener:
    """A listener that counts a stage's steps among those `before` and `after` it."""

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            steps = before + event.steps + after
            event = dataclasses.replace(event, step=before + event.step, steps=steps)
        on_event(event)

    return listen


def refine(
    coarse: Optimized,
    config: GenerateConfig,
    teacher: Any,
    *,
    load_teacher: Callable[[TeacherName, DeviceName], Any],
    optimize: Callable[..., Optimized],
    folder: Path,
    on_event: Listener,
    should_stop: Callable[[], bool],
) -> SecondStage:
    """Optimise the meshes of the fields in `coarse`, going on from a checkpoint in `folder`.

    `teacher` is the first stage's; where the second has another, that one leaves the device until
    the stage is over. Raises the errors of `sds3d.errors`, TeacherError where the second teacher's
    weights are not those that the stage began with.
    """
    from core.teachers.teacher import set_aside

    from .embedded_guidance import check_supervision
    from .field_representation import FieldRepresentation
    from .surface_representation import SurfaceRepresentation
    from .teachers import held_as

    checkpoint = refine_checkpoint(folder, on_event)
    make_writable_folder(checkpoint.folder)
    stage = second_stage(config)
    particles = []
    for particle in coarse.particles:
        assert isinstance(particle, FieldRepresentation)
        particles.append(SurfaceRepresentation(particle, stage))

    def run(chosen: Any) -> SecondStage:
        check_supervision(chosen, stage.teacher, stage.optimize, stage.negative_prompt)
        found = {
            "name": stage.teacher,
            "weights_sha256": chosen.weights_sha256,
            **held_as(chosen),
        }
        _same_teacher(checkpoint.folder, found)
        optimized = optimize(
            stage,
            chosen,
            checkpoint=checkpoint,
            on_event=numbered(on_event, coarse.step, 0),
            should_stop=should_stop,
            particles=particles,
        )
        return SecondStage(optimized=optimized, teacher=found)

    if stage.teacher == config.teacher:
        return run(teacher)
    with set_aside(teacher):
        return run(load_teacher(stage.teacher, stage.device))


def _same_teacher(folder: Path, found: dict[str, Any]) -> None:
    """Remember which weights the stage began with, and how they were held, or compare."""
    from .teachers import require_same_size

    path = folder / "teacher.json"
    try:
        before = json.loads(path.read_bytes())
    except (OSError, ValueError):
        write_atomic(path, json.dumps(found).encode())
        return
    if before.get("weights_sha256") != found["weights_sha256"]:
        raise TeacherError(
            f"the weights of --refine-teacher {found['name']} ({found['weights_sha256'][:12]}) are "
            f"not those that the second stage in {folder} began with: start anew with --overwrite"
        )
    require_same_size(before, found, f"the second stage in {folder}")
