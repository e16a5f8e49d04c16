"""A worker's process that takes milliseconds a step and leaves real files: GLB, OBJ, pictures.

Run as a script with the arguments of `python -m sds3d.jobs.worker`; STEP_SECONDS slows it down.
"""

import dataclasses
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.color import ColorVisuals

from sds3d.config import GenerateConfig
from sds3d.events import Event, Listener, Preview, Stage, Step
from sds3d.export.turntable import export_turntable
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.previews import PICTURE
from sds3d.jobs.worker import main


def _fakes() -> Any:
    path = Path(__file__).parents[1] / "sds3d" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fakes_of_the_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _disc(side: int, share: float, width: int = 1) -> np.ndarray:
    """A red disc, `width` times side by side, that grows with `share`."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = x * x + y * y < (0.2 + 0.7 * share) ** 2
    picture = np.full((side, side, 3), 237, np.uint8)
    picture[inside] = (200, int(200 * (1 - share)), 60)
    return np.concatenate([picture] * width, axis=1)


def write_files(
    optimized: Any, config: GenerateConfig, folder: Path, on_event: Listener
) -> dict[str, Any]:
    """A red ball in each format that was asked for, with its pictures and its film."""
    on_event(Stage("mesh"))
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    red = np.tile(np.array([200, 30, 30, 255], np.uint8), (len(ball.vertices), 1))
    ball.visual = ColorVisuals(mesh=ball, vertex_colors=red)
    on_event(Stage("export"))
    for name in config.mesh.formats:
        ball.export(folder / f"mesh.{name}")
    sheet = _disc(128, 1.0, 4)
    Image.fromarray(np.concatenate([sheet, sheet])).save(folder / "preview.png")
    frames = np.stack([_disc(64, share) for share in np.linspace(0.5, 1, 8)])
    export_turntable(frames, folder / "turntable.mp4")
    return {
        "mesh": {"faces": len(ball.faces), "vertices": len(ball.vertices), "watertight": True},
        "iso_iou": 0.97,
        "seconds": {"mesh": 0.25, "export": 0.125},
    }


def _make_bench() -> Bench:
    fakes = _fakes()
    loop = fakes.FakeLoop(step_seconds=float(os.environ.get("STEP_SECONDS", "0")))

    def optimize(config: Any, teacher: Any, *, checkpoint: Any, on_event: Any, **how: Any) -> Any:
        shown = 0.0

        def listen(event: Event) -> None:
            nonlocal shown
            if isinstance(event, Step):
                share = event.step / event.steps
                event = dataclasses.replace(
                    event,
                    opacity=0.1 + 0.3 * share,
                    # Of three seeds in a row the one in the middle is the best.
                    agreement=0.5 - 0.3 * share - 0.05 * (config.seed % 3 == 2),
                )
                if time.monotonic() - shown > 0.3:
                    shown = time.monotonic()
                    partial = checkpoint.folder / "growing.part.png"
                    Image.fromarray(_disc(96, share, 4)).save(partial)
                    os.replace(partial, checkpoint.folder / PICTURE)
                    on_event(Preview(checkpoint.folder / PICTURE))
            on_event(event)

        return loop(config, teacher, checkpoint=checkpoint, on_event=listen, **how)

    parts = fakes.make_parts(loop=optimize, write_files=write_files)
    return Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))


if __name__ == "__main__":
    sys.exit(main(bench=_make_bench()))
