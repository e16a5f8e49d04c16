"""Rendered views of the toybox world on disk, for the scripts that train on them."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sds3d.atomic import write_atomic
from sds3d.toybox.scenes import SceneSpec, build, sample_training_spec
from sds3d.toybox.tracer import Light, render_rgba

__all__ = ["ImageCache"]

VIEWS_PER_SCENE = 4


class ImageCache:
    """Rendered views on disk, filled in order by threads; any entry is a function of its index."""

    ahead = 1024  # views rendered before they are asked for

    def __init__(self, folder: Path, count: int, seed: int, threads: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.count = count
        path = folder / f"views-{seed}-{count}.u8"
        exists = path.exists()
        mode = "r+" if exists else "w+"
        self.images = np.memmap(path, np.uint8, mode, shape=(count, 64, 64, 4))
        done = folder / f"views-{seed}-{count}.done"
        self._done_path = done
        self.cameras = np.zeros((count, 2), np.float32)
        self.specs: list[SceneSpec | None] = [None] * count
        self.ready = 0
        self._rendered = _rendered_before(done) if exists else 0
        self._pool = ThreadPoolExecutor(threads)
        self._stop = False
        self._wanted = 0
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def _scene(self, group: int) -> None:
        rng = np.random.default_rng([self.seed, group])
        spec = sample_training_spec(rng)
        first = group * VIEWS_PER_SCENE
        render = first + VIEWS_PER_SCENE > self._rendered
        solid = build(spec, rng) if render else None
        view_rng = np.random.default_rng([self.seed, group, 1])
        for i in range(first, min(first + VIEWS_PER_SCENE, self.count)):
            azimuth = view_rng.uniform(0, 360)
            # uniform on the sphere's band from -20 to 80 degrees, a little denser near the level
            sines = np.sin(np.radians([-20.0, 80.0]))
            elevation = (
                np.degrees(np.arcsin(view_rng.uniform(*sines)))
                if view_rng.uniform() < 0.6
                else view_rng.uniform(-15, 45)
            )
            distance = view_rng.uniform(2.75, 3.1)
            tilt = view_rng.normal(size=3) * 0.12
            light = Light(
                direction=tuple(np.add(Light().direction, tilt)),
                ambient=view_rng.uniform(0.70, 0.80),
            )
            self.cameras[i] = azimuth, elevation
            self.specs[i] = spec
            if solid is not None:
                rgba = render_rgba(
                    solid,
                    azimuth_deg=azimuth,
                    elevation_deg=float(elevation),
                    distance=distance,
                    light=light,
                )
                self.images[i] = np.clip(rgba * 255.0 + 0.5, 0, 255).astype(np.uint8)

    def _fill(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
        groups = (self.count + VIEWS_PER_SCENE - 1) // VIEWS_PER_SCENE
        chunk = 64
        for start in range(0, groups, chunk):
            # Rendering far ahead would only take the processor from the training.
            while self.ready > self._wanted + self.ahead and not self._stop:
                time.sleep(0.2)
            if self._stop:
                return
            list(self._pool.map(self._scene, range(start, min(start + chunk, groups))))
            self.ready = min((start + chunk) * VIEWS_PER_SCENE, self.count)
            if self.ready > self._rendered:
                self.images.flush()
                write_atomic(self._done_path, str(self.ready).encode())

    def close(self) -> None:
        """Stop rendering after the chunk in hand."""
        self._stop = True
        self._thread.join()
        self._pool.shutdown()

    def wait_for(self, count: int) -> None:
        """Return when the first `count` views are there."""
        self._wanted = max(self._wanted, count)
        while self.ready < count:
            if not self._thread.is_alive() and self.ready < count:
                raise RuntimeError("the rendering thread died; see its traceback above")
            time.sleep(0.05)


def _rendered_before(done: Path) -> int:
    """How many views an earlier process has rendered; 0 where it did not say, or not in full."""
    try:
        return int(done.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
