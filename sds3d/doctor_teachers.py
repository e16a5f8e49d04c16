"""Whether a teacher's files are there and whole, and what memory a run with it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import PresetName
from .errors import Sds3dError
from .findings import Finding, in_gib, total_memory

if TYPE_CHECKING:
    from core.teachers.folder import TeacherFolder
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.toybox import ToyboxTeacher

    from .optimize_config import OptimizeConfig
    from .step_memory import StepMemory

__all__ = ["teacher_findings"]


def teacher_findings(name: str, preset: PresetName | None = None) -> list[Finding]:
    """Whether a teacher's files are there and whole, and what a step of a preset takes with it.

    A teacher of the preset's second stage is looked at as well. Without a preset it is a published
    recipe for the teacher, of which the first stage counts. Nothing is fetched.
    """
    from .config import GenerateConfig
    from .presets import PRESETS
    from .refine import second_stage

    if preset is None:
        return _findings(name, "teacher", None)
    options = PRESETS[preset].optimize
    found = _findings(name, "teacher", _Counted(f"--preset {preset}", options))
    if options.refine.refine_steps == 0 or options.refine.refine_teacher in ("", name):
        return found
    stage = second_stage(GenerateConfig(prompt="a thing", teacher=name, optimize=options))
    counted = _Counted(f"the second stage of --preset {preset}", stage.optimize)
    return found + _findings(stage.teacher, "second teacher", counted)


@dataclass(frozen=True)
class _Counted:
    """Options whose step is counted, and what they are called."""

    name: str
    options: OptimizeConfig


def _findings(name: str, what: str, counted: _Counted | None) -> list[Finding]:
    """The findings of one teacher, which they call `what`."""
    from .teachers import look_at, require_kind

    try:
        folder = look_at(name, fetch=False)
        require_kind(folder)
    except Sds3dError as error:
        return [Finding(name=f"{what} {name}", status="problem", text=str(error))]
    found = []
    for part in folder.components:
        text = part.class_name
        if part.is_model:
            size = in_gib(part.weight_bytes)
            text += f", {part.parameters / 1e6:.1f} M parameters, {size} on disk"
        found.append(
            Finding(
                name=f"{what} {part.name}",
                status="problem" if part.problems else "ok",
                text="; ".join(part.problems) or text,
            )
        )
    return found if folder.problems else found + _memory_findings(name, what, folder, counted)


def _memory_findings(
    name: str, what: str, folder: TeacherFolder, counted: _Counted | None
) -> list[Finding]:
    """What the teacher takes, and a step with it, on the device that --device auto takes."""
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.teacher import LatentTeacher

    from .device import resolve_device
    from .step_memory import step_memory
    from .teachers import outline_teacher
    from .user_config import config_path, read_user_config

    device, settings = resolve_device("auto"), read_user_config().teacher
    try:
        teacher = outline_teacher(name, device, fetch=False)
        if counted is None:
            counted, needs = _likeliest(name, teacher)
        else:
            needs = step_memory(teacher, counted.options)
    except Sds3dError as error:
        return [Finding(name=f"{what} step", status="problem", text=str(error))]
    options = counted.options
    found = []
    if isinstance(teacher, PretrainedTeacher):
        readers = [part for part in folder.components if part.name.startswith("text_encoder")]
        sizes = [teacher.dtype.itemsize * part.parameters for part in readers]
        taking_turns = max(needs.weights, *sizes)
        reading = taking_turns if settings.get(_VISIT) else needs.weights + sum(sizes)
        dtype = str(teacher.dtype).removeprefix("torch.")
        text = f"on {device} in {dtype} the weights take {in_gib(reading)} while the prompt is "
        text += f"read and {in_gib(needs.weights)} after it"
        if not settings.get(_VISIT):
            text += f", or {in_gib(taking_turns)} at most with {_VISIT} = true in {config_path()}"
        found.append(_fits(f"{what} memory", text, reading, device))
    count, side = options.views_per_step, teacher.image_size
    text = f"{counted.name} ({options.method}, {count} view{'s' if count > 1 else ''} of {side} "
    text += f"px) takes {in_gib(needs.peak)} in a step, the weights among it"
    if isinstance(teacher, LatentTeacher) and not (options.latent or settings.get(_AGAIN)):
        checkpointed = outline_teacher(name, device, fetch=False, checkpoint_vae=True)
        less = step_memory(checkpointed, options)
        text += f", or {in_gib(less.peak)} with {_AGAIN} = true in {config_path()}"
    text += "; counted from the shapes, not measured on a GPU, and what is optimised comes on top"
    return [*found, _fits(f"{what} step", text, needs.peak, device)]


_AGAIN = "checkpoint_vae"
_VISIT = "offload_text_encoders"


def _likeliest(
    name: str, teacher: ToyboxTeacher | PretrainedTeacher
) -> tuple[_Counted, StepMemory]:
    """The options with which a teacher of that name is most likely asked, and what a step takes.

    Of several recipes for it the one that takes the most.
    """
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.teacher import views_per_object

    from .presets import PRESETS
    from .recipes import RECIPES
    from .step_memory import step_memory

    presets: list[PresetName] = [p for p, chosen in RECIPES.items() if chosen.teacher == name]
    if not isinstance(teacher, PretrainedTeacher):
        presets = ["balanced"]
    elif not presets:
        presets = ["mvdream" if views_per_object(teacher) > 1 else "dreamfusion"]
    counted = [_Counted(f"--preset {preset}", PRESETS[preset].optimize) for preset in presets]
    needs = [step_memory(teacher, each.options) for each in counted]
    return max(zip(counted, needs, strict=True), key=lambda pair: pair[1].peak)


def _fits(name: str, text: str, needed: int, device: str) -> Finding:
    """A finding on memory; a problem where the device has less."""
    total = total_memory(device)
    if total is None or needed <= total:
        return Finding(name=name, status="ok", text=text)
    remedy = "choose half precision, a smaller image_size or another teacher (docs/teachers.md)"
    text += f". This is more than the {in_gib(total)} of this {device}: {remedy}"
    return Finding(name=name, status="problem", text=text)
