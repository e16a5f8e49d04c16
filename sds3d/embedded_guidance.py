"""What a teacher with guidance built in can be asked, and the refusal of what it cannot honour.

Such a teacher (core.guidance.EmbedsGuidance) answers for guidance in one pass, and so knows only
the guidance that it was distilled from: of a prompt with a camera against nothing, at a range of
scales. Teachers that are contrasted in two passes are asked anything. FLUX.1-dev is one of these
though it takes a scale too: its own (--embedded-guidance) belongs to both of the passes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from core.denoiser import Conditioning
from core.guidance import EmbedsGuidance
from core.teachers.teacher import takes_guidance

from .config import TeacherName
from .errors import ConfigError
from .methods import METHOD_CLASSES
from .optimize_config import OptimizeConfig


def check_guidance(
    teacher: object,
    name: TeacherName,
    guidance_scale: float,
    negative_prompt: str = "",
    *,
    scale_flag: str = "--guidance-scale",
) -> None:
    """Raise ConfigError, with the remedy, where the teacher of that name embeds other guidance.

    `scale_flag` is where the scale comes from.
    """
    if not isinstance(teacher, EmbedsGuidance):
        return
    _check_scale(teacher, name, scale_flag, guidance_scale)
    if negative_prompt:
        raise ConfigError(
            f"--negative-prompt is {negative_prompt[:60]!r}: what {name} contrasts prompts with is "
            "in its weights, leave it out, or give --teacher toybox"
        )


def embed(cond: Conditioning, scale: float) -> Conditioning:
    """`cond` with the embedded guidance at `scale`, where a teacher set one; 0 leaves that.

    Both halves of a contrast get it: they are answers of one model.
    """
    if scale == 0:
        return cond
    uncond = None if cond.uncond is None else embed(cond.uncond, scale)
    given = cond.guidance_scale
    return replace(
        cond,
        uncond=uncond,
        guidance_scale=None if given is None else torch.full_like(given, scale),
    )


def check_embedded(scale: float, *teachers: object) -> None:
    """Raise ConfigError where an embedded guidance is asked for that none of the teachers takes."""
    if scale > 0 and not any(map(takes_guidance, teachers)):
        raise ConfigError(
            f"--embedded-guidance is {scale:g}: this teacher takes no guidance as an input, as "
            "FLUX.1-dev does; leave it out and give --guidance-scale"
        )


def _check_scale(teacher: EmbedsGuidance, name: TeacherName, flag: str, scale: float) -> None:
    low, high = teacher.guidance_scales
    if not low <= scale <= high:
        raise ConfigError(
            f"{flag} is {scale:g}: {name} was distilled for {low:g} to {high:g}, give one of "
            "these, or --teacher toybox"
        )


def check_supervision(
    teacher: object,
    name: TeacherName,
    options: OptimizeConfig,
    negative_prompt: str,
    *,
    scale_flag: str = "--guidance-scale",
) -> None:
    """`check_guidance` of all options of a run."""
    if not isinstance(teacher, EmbedsGuidance):
        return
    check_guidance(teacher, name, options.guidance_scale, negative_prompt, scale_flag=scale_flag)
    second = options.refine
    if second.refine_steps > 0 and second.refine_guidance_scale > 0 and not second.refine_teacher:
        _check_scale(teacher, name, "--refine-guidance-scale", second.refine_guidance_scale)
    unlike: list[tuple[str, object, str]] = []
    if not options.camera_conditioning:
        unlike.append(("--no-camera-conditioning", "given", "is always told the camera"))
    if not options.camera_guidance:
        unlike.append(("--no-camera-guidance", "given", "strengthens camera and prompt together"))
    if options.perp_neg:
        unlike.append(("--perp-neg", "given", "gives one answer, which no other prompt can bend"))
    if not METHOD_CLASSES[options.method].guided_only:
        allowed = ", ".join(name for name, kind in METHOD_CLASSES.items() if kind.guided_only)
        text = f"gives the guided answer alone, which is enough for {allowed}"
        unlike.append(("--method", options.method, text))
    if options.guidance_rescale > 0:
        text = "gives no unguided answer whose contrast could be brought back"
        unlike.append(("--guidance-rescale", f"{options.guidance_rescale:g}", text))
    for flag, value, reason in unlike:
        raise ConfigError(
            f"{flag} is {value}: {name} {reason}; leave it out, or give --teacher toybox"
        )
