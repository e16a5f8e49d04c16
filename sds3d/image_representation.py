"""A plain image as what a run optimises: how a method of score distillation is looked at closely.

There is no renderer in between and nothing that smooths, so the image shows what a teacher and a
method make of a prompt, in a fraction of a field's time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import GenerateConfig
from .events import Listener, Stage
from .optimize_config import OptimizeConfig
from .representation import ParameterGroup, Shown
from .resize import at_size
from .seeds import step_seed
from .views import DISTANCE, Views

__all__ = ["FRAMES", "ImageRepresentation"]

FRAMES = 8
"""Pictures in the strip that shows how the image came about."""

LEAST_SIDE = 128
"""Files of fewer pixels are enlarged by a whole number to at least this side."""

START_STD = 0.1
"""Standard deviation of the noise about grey that an image starts as."""


class ImageRepresentation(nn.Module):
    """Pixels [1, 3, S, S] in [0, 1], seen from one camera; S need not be what the teacher sees.

    Each step asks about `views_per_step` noises at the same image.

    Args:
        teacher_size: Side in pixels of what the teacher is shown.
        number: Which of the particles of a run it is; another one starts elsewhere.
    """

    frames: Tensor
    filled: Tensor

    def __init__(
        self, options: OptimizeConfig, seed: int, teacher_size: int, number: int, device: str
    ) -> None:
        super().__init__()
        self.options = options
        self.teacher_size = teacher_size
        side = options.image.image_resolution or teacher_size
        generator = torch.Generator().manual_seed(step_seed(seed, -1 - number))
        noise = START_STD * torch.randn(1, 3, side, side, generator=generator)
        self.pixels = nn.Parameter((0.5 + noise).to(device))
        frames = torch.zeros(FRAMES, 3, side, side, dtype=torch.uint8, device=device)
        self.register_buffer("frames", frames)
        self.register_buffer("filled", torch.zeros(FRAMES, dtype=torch.bool, device=device))

    @property
    def finest_side(self) -> int:
        return self.teacher_size

    def groups(self) -> Sequence[ParameterGroup]:
        rate = self.options.image.image_learning_rate
        return (ParameterGroup(parameters=[self.pixels], learning_rate=rate),)

    def prepare(self, turn: int, generator: torch.Generator) -> None:
        """Nothing: pixels need no upkeep."""

    def views(self, generator: torch.Generator) -> Views:
        """The one camera, once for each noise; draws nothing."""
        return self.around(self.options.views_per_step, 0.0)

    def around(self, count: int, elevation_deg: float) -> Views:
        """The one camera, `count` times."""
        image = self.options.image
        azimuth = torch.full((count,), image.azimuth_deg)
        return Views(
            azimuth_deg=azimuth,
            elevation_deg=torch.full_like(azimuth, image.elevation_deg),
            distance=torch.full_like(azimuth, DISTANCE),
        )

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        """The image for each view; remembers it as the latest of its eighth of the run."""
        frame = min(int(progress * FRAMES), FRAMES - 1)
        self.frames[frame] = _quantized(self.pixels)[0]
        self.filled[frame] = True
        count, side = len(views.azimuth_deg), self.pixels.shape[-1]
        return Shown(
            images=self.pixels.expand(count, -1, -1, -1),
            opacity=self.pixels.new_ones(count, side, side),
            samples=0,
            penalty=lambda _: self.pixels.new_zeros(()),
        )

    @torch.no_grad()
    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        image = at_size(self.pixels, (side, side))
        return image.expand(len(views.azimuth_deg), -1, -1, -1).clamp(0, 1)

    def complaint(self, shown: Shown) -> str | None:
        return None

    @torch.no_grad()
    def write_files(
        self, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]:
        """image.png, as the teacher saw it, and progress.png, from left to right.

        Returns "image" with its side and the share of its values that had to be clipped.
        """
        from .export import export_contact_sheet
        from .export.atomic import write_bytes
        from .export.glb import png_bytes

        started = time.perf_counter()
        on_event(Stage("export"))
        size = (self.teacher_size, self.teacher_size)
        image = at_size(self.pixels, size)
        write_bytes(folder / "image.png", png_bytes(_enlarged(_quantized(image))[0]))
        strip = _enlarged(self.frames[self.filled])
        export_contact_sheet(strip, folder / "progress.png", columns=FRAMES)
        clipped = ((self.pixels < 0) | (self.pixels > 1)).float().mean()
        return {
            "image": {"side": self.teacher_size, "clipped": float(clipped)},
            "seconds": {"export": time.perf_counter() - started},
        }


def _quantized(images: Tensor) -> Tensor:
    return images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)


def _enlarged(images: Tensor) -> Any:
    """[N, H, W, 3] uint8 arrays of images [N, 3, h, w], every pixel a square of pixels."""
    times = -(-LEAST_SIDE // images.shape[-1])
    large = images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    return large.permute(0, 2, 3, 1).cpu().numpy()
