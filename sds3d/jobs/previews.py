"""Pictures of the growing object, at a bounded cost."""

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

    from sds3d.optimize import Optimization

PICTURE = "growing.png"
VIEWS = 4
ELEVATION_DEG = 20.0
SIDES = (128, 96, 64)
"""Sides of one view in pixels; the next is taken where a picture would be long in coming."""
BACKGROUND = 0.93


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

    `taken` is told the picture's path and the seconds that it took. After the step `always_at` one
    is taken whatever it costs.
    Draws from no generator of the run and changes nothing in it.
    """

    def __init__(
        self,
        folder: Path,
        taken: Callable[[Path, float], None],
        ration: Ration,
        *,
        always_at: int | None = None,
    ) -> None:
        self.folder = folder
        self._taken = taken
        self._ration = ration
        self._always_at = always_at
        self._sides = list(SIDES)
        self._is_warm = False

    def __call__(self, loop: Optimization) -> None:
        if not self._ration.is_due() and loop.step != self._always_at:
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
        cost = self._ration.now() - started
        self._ration.count(cost, is_typical=self._is_warm)
        if self._is_warm:
            self._shrink(cost)
        self._is_warm = True
        self._taken(path, cost)

    def _shrink(self, cost: float) -> None:
        """Take smaller pictures from now on where those of this cost would come more rarely."""
        affordable = self._ration.share * self._ration.seconds
        side = self._sides[0]
        # By the pixels: what costs the same at every size makes it only dearer.
        while len(self._sides) > 1 and cost * (self._sides[0] / side) ** 2 > affordable:
            self._sides.pop(0)


def _pixels(loop: Optimization, side: int) -> np.ndarray:
    """[side, VIEWS * side, 3] uint8: the views side by side."""
    import numpy as np

    from sds3d.agreement import render_views

    views = loop.particles[0].around(VIEWS, ELEVATION_DEG)
    images = render_views(loop, views, side, BACKGROUND)
    images = images.clamp(0, 1).mul(255).round()
    frames = images.permute(0, 2, 3, 1).byte().cpu().numpy()
    return np.concatenate(list(frames), axis=1)
