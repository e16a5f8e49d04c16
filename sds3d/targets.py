"""What the option --target names."""

from __future__ import annotations

from .config import GenerateConfig
from .field_representation import FieldRepresentation
from .image_representation import ImageRepresentation
from .representation import Representation

__all__ = ["represent"]


def represent(config: GenerateConfig, teacher_size: int, number: int) -> Representation:
    """The `number`-th particle (from 0) before its first step, on the config's device.

    `teacher_size` is the side in pixels of what the teacher is shown.
    """
    options, seed, device = config.optimize, config.seed, config.device
    match options.target:
        case "mesh":
            return FieldRepresentation(options, seed, number, device)
        case "image":
            return ImageRepresentation(options, seed, teacher_size, number, device)
