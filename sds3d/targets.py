"""What the option --target names."""

from __future__ import annotations

from torch import Tensor

from .config import GenerateConfig
from .field_representation import FieldRepresentation
from .image_representation import ImageRepresentation
from .latent_representation import LatentFieldRepresentation
from .representation import Representation

__all__ = ["represent"]


def represent(
    config: GenerateConfig, teacher_size: int, number: int, reading: Tensor | None = None
) -> Representation:
    """The `number`-th particle (from 0) before its first step, on the config's device.

    `teacher_size` is the side in pixels of what the teacher is shown; `reading` [C, 3] reads the
    latents of a field of latents as RGB.
    """
    options, seed, device = config.optimize, config.seed, config.device
    match options.target:
        case "mesh" if reading is not None:
            return LatentFieldRepresentation(options, seed, number, device, reading)
        case "mesh":
            return FieldRepresentation(options, seed, number, device)
        case "image":
            return ImageRepresentation(options, seed, teacher_size, number, device)
