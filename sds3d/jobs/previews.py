"""Pictures of the growing object, and how well the teacher agrees with it, at a bounded cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sds3d.atomic import write_atomic
from sds3d.errors import output_error

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sds3d.optimize import Optimization

PICTURE = "growing.png"
VIEWS = 4
ELEVATION_DEG = 20.0
SIDES = (128, 96, 64)
"""Sides of one view in pixels; the next is taken where a picture would be long in coming."""
BACKGROUND = 0.93
AGREEMENT_TIMES = (0.3, 0.5, 0.7, 0.5)
"""The fixed diffusion time of each view."""


@dataclass
class Ration:
    """Says when the next picture may be taken: at most every `seconds`, and for at most `share`
    of the time since the first call, the picture to come included.
    """

    seconds: float = 2.0
    share: float = 0.1
    first_guess: float = 0.2
    now: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._began = self._last = self.now()
        self._spent = 0.0
        self.cost = self.first_guess

    def is_due(self) -> bool:
        now = self.now()
        affordable = self._spent + self.cost <= self.share * (now - self._began)
        return affordable and now - self._last >= self.seconds

    def count(self, cost: float, *, is_typical: bool = True) -> None:
        """Say what the picture that was just taken cost, in seconds, and if the next will too."""
        self._spent += cost
        if is_typical:
            self.cost = cost
        self._last = self.now()


class Previewer:
    """Shown the loop's state after each step, now and then writes `growing.png` to the folder.

    `taken` is told the picture's path and the agreement: the mean over the same four views, times
    and noises of |x - D(x_t)|², x being the rendered views and D the teacher's prediction of the
    clean image, without guidance. Draws from no generator of the run and changes nothing in it.
    """

    def __init__(self, folder: Path, taken: Callable[[Path, float], None], ration: Ration) -> None:
        self.folder = folder
        self._taken = taken
        self._ration = ration
        self._sides = list(SIDES)
        self._is_warm = False

    def __call__(self, loop: Optimization) -> None:
        if not self._ration.is_due():
            return
        from sds3d.export.glb import png_bytes

        started = self._ration.now()
        path = self.folder / PICTURE
        # The first is a small one: it pays for whatever is done once, kernels to be compiled.
        side = self._sides[0] if self._is_warm else SIDES[-1]
        try:
            write_atomic(path, png_bytes(_pixels(loop, side)))
        except OSError as error:
            raise output_error(error, self.folder) from error
        agreement = self._agreement(loop)
        cost = self._ration.now() - started
        self._ration.count(cost, is_typical=self._is_warm)
        # A picture that comes less often than every other time is better a smaller one.
        slow = self._is_warm and cost > 2 * self._ration.share * self._ration.seconds
        if slow and len(self._sides) > 1:
            self._sides.pop(0)
        self._is_warm = True
        self._taken(path, agreement)

    def _agreement(self, loop: Optimization) -> float:
        import torch

        from core.distillation.score.sds import SDS
        from sds3d.views import ring

        x = 2.0 * _render(loop, loop.teacher_size, background=0.5) - 1.0
        t = torch.tensor(AGREEMENT_TIMES).to(x)
        cond = loop.cond.with_camera(ring(VIEWS, ELEVATION_DEG).camera.to(x.device))
        # The x0 form of score distillation is x - D(x_t); the seed makes it the same noise always.
        generator = torch.Generator().manual_seed(0)
        gradient = SDS(loop.teacher).gradient(x, t, cond, generator=generator)
        return float(gradient.square().mean())


def _render(loop: Optimization, side: int, background: float) -> Tensor:
    """[VIEWS, 3, side, side] in [0, 1]: the object from all around, without jitter."""
    import torch

    from nerf.cameras import camera_rays, orbit_c2w
    from nerf.rendering import RenderConfig, render
    from sds3d.views import FOVY_DEG, ring

    views = ring(VIEWS, ELEVATION_DEG)
    device = loop.device
    c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance, device=device)
    rays_o, rays_d = camera_rays(c2w, FOVY_DEG, side, side)
    with torch.no_grad():
        rendered = render(
            loop.field,
            loop.occupancy,
            rays_o,
            rays_d,
            RenderConfig(step_size=loop.options.step_size),
            background=torch.full((3,), background, device=device),
        )
    return rendered.images


def _pixels(loop: Optimization, side: int) -> np.ndarray:
    """[side, VIEWS * side, 3] uint8: the views side by side."""
    import numpy as np

    images = _render(loop, side, BACKGROUND).clamp(0, 1).mul(255).round()
    frames = images.permute(0, 2, 3, 1).byte().cpu().numpy()
    return np.concatenate(list(frames), axis=1)
