"""The teacher's own pictures of a prompt: what it would make of it, before a long run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .atomic import make_writable_folder
from .config import DeviceName, TeacherName, clean_prompt, required_prompt
from .config_json import slug
from .events import Listener, Warning, ignore_event
from .require import require_number

if TYPE_CHECKING:
    import numpy as np

    from core.teachers.teacher import Teacher

VIEWS: dict[str, tuple[float, float]] = {
    "front": (0.0, 15.0),
    "side": (90.0, 15.0),
    "back": (180.0, 15.0),
    "above": (0.0, 75.0),
}
"""Azimuth and elevation in degrees of each picture, left to right."""

RING_ELEVATION_DEG = 15.0
"""Elevation of the pictures of a teacher that draws all sides of an object together."""

LEAST_SIDE = 256
"""Pictures of fewer pixels are enlarged by a whole number to at least this side."""


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Draw the teacher's own front, side, back and top view of a prompt into one PNG.

    A teacher that draws several sides together shows these instead.
    """

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """What to draw, e.g. "a red mushroom"."""
    negative_prompt: str = ""
    """What the object should not be."""
    seed: int = 0
    """Seed of the noise that the pictures are made from."""
    guidance_scale: float = 3.0
    """Classifier-free guidance: uncond + s (cond - uncond)."""
    embedded_guidance: float = 0.0
    """The scale that a teacher such as FLUX.1-dev takes as an input; 0 is its published one."""
    sample_steps: int = 24
    """Steps from noise to picture."""
    teacher: TeacherName = "toybox"
    """The diffusion model that draws: a name, a hub's id or a folder, as of generate."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    out: Path = Path("outputs")
    """Folder for the PNG."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", required_prompt(self.prompt))
        negative = clean_prompt(self.negative_prompt, "negative prompt")
        object.__setattr__(self, "negative_prompt", negative)
        require_number("--seed", self.seed, 0, 2**63 - 1)
        require_number("--guidance-scale", self.guidance_scale, 0, 1000)
        require_number("--embedded-guidance", self.embedded_guidance, 0, 100)
        require_number("--sample-steps", self.sample_steps, 1, 1000)


def preview(config: PreviewConfig, on_event: Listener = ignore_event) -> Path:
    """Draw the four views side by side; returns the PNG's path.

    Raises the errors of `sds3d.errors`.
    """
    make_writable_folder(config.out)
    from .teachers import check_prompt, load_teacher, teacher_folder

    teacher_folder(config.teacher)
    from .device import resolve_device
    from .embedded_guidance import check_embedded, check_guidance
    from .export import export_contact_sheet

    teacher = load_teacher(config.teacher, resolve_device(config.device))
    check_guidance(teacher, config.teacher, config.guidance_scale, config.negative_prompt)
    check_embedded(config.embedded_guidance, teacher)
    warning = check_prompt(teacher, config.prompt)
    if warning is not None:
        on_event(Warning(warning))
    path = config.out / f"{slug(config.prompt)}-preview-{config.seed}.png"
    frames = draw_views(teacher, config)
    times = -(-LEAST_SIDE // frames.shape[1])
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    export_contact_sheet(frames, path, columns=len(frames))
    return path


def draw_views(teacher: Teacher, config: PreviewConfig) -> np.ndarray:
    """[V, H, W, 3] uint8: samples of the teacher, all from the same noise, one per view.

    A teacher that takes no camera is asked by the view prompts. One that judges several views of
    an object together draws these, evenly around, each from a noise of its own.
    """
    import torch

    from core.guidance import guided
    from core.solvers.ddim import DDIM
    from core.solvers.sampling import sample
    from core.teachers.teacher import (
        decode_from,
        free_text_encoders,
        noise_shape,
        takes_camera,
        views_per_object,
    )

    from .embedded_guidance import embed
    from .teachers import readable
    from .view_prompts import view_texts
    from .views import ring

    together = views_per_object(teacher)
    texts = [config.prompt] if takes_camera(teacher) else view_texts(config.prompt)
    with readable():
        cond = teacher.encode(texts, config.negative_prompt)
    cond = embed(cond, config.embedded_guidance)
    free_text_encoders(teacher)
    device = teacher.device
    camera = torch.tensor(list(VIEWS.values()), device=device)
    if together > 1:
        camera = ring(together, RING_ELEVATION_DEG).camera.to(device)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(together, *noise_shape(teacher), generator=generator).to(device)
    times = torch.linspace(1, 0, config.sample_steps + 1)
    with torch.no_grad():
        found = sample(
            guided(teacher, config.guidance_scale),
            DDIM(),
            times,
            noise.expand(len(camera), -1, -1, -1),
            cond.with_camera(camera),
        ).x
        images = decode_from(teacher, found)
    pixels = (images.clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
