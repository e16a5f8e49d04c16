"""Distil guidance into the embedded teacher: one pass for two (arXiv 2210.03142, Section 3.1).

    python scripts/distill_toybox_guidance.py
    python scripts/distill_toybox_guidance.py --cache .training/toybox/cache --steps 3000

Writes what `--teacher toybox-guided` reads, a low-rank delta on assets/toybox. The student is shown
the teacher's own pictures and as many exact renders of the world, from the training script's cache
(made where it is missing). Killed or stopped by Ctrl-C and started again with the same command, it
goes on from its last checkpoint. It is `sds3d distill guidance --teacher toybox` but for the
renders, which an installed package cannot make.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro

from core.teachers.toybox_guided import RANK
from sds3d.distill.run import DistillConfig
from sds3d.distill.toybox import SCALES, Pictures
from sds3d.distill.toybox_run import CARD, TEACHER, distill_toybox
from sds3d.errors import Interrupted, Sds3dError
from sds3d.progress import progress
from sds3d.signals import Stop
from sds3d.teachers import TOYBOX_FOLDER
from sds3d.toybox.captions import sample_caption
from toybox_views import ImageCache

if TYPE_CHECKING:
    from core.teachers.toybox import ToyboxTeacher


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Distil guidance into the embedded teacher and put the result where the program looks."""

    steps: int = 3000
    """Optimiser steps."""
    batch: int = 16
    """Pictures in a step."""
    learning_rate: float = 1e-3
    """Adam's; it falls to zero in the second half."""
    pictures: int = 8192
    """How many of the teacher's own pictures, and how many renders."""
    seed: int = 0
    """Of everything."""
    cache: Path = Path(".training/toybox/cache")
    """Folder of the training script's renders."""
    cache_images: int = 100_000
    """Size of that cache, which is part of its name."""
    base: Path = TOYBOX_FOLDER
    """The teacher's folder."""
    work: Path = Path(".training/guided")
    """Folder of the checkpoint, the measurements and the samples."""
    out: Path = Path(__file__).resolve().parents[1] / "assets" / "toybox-guided"
    """Where the guided teacher goes: beside the packages, where --teacher toybox-guided looks."""


def rendered(teacher: ToyboxTeacher, config: GuidanceConfig) -> Pictures:
    """The first views of the training script's cache, with a caption for each."""
    cache = ImageCache(config.cache, config.cache_images, 0, threads=2)
    count = min(config.pictures, config.cache_images)
    cache.wait_for(count)
    rng = np.random.default_rng([config.seed, 15_485_867])
    captions = []
    for i in range(count):
        spec = cache.specs[i]
        assert spec is not None
        azimuth, elevation = cache.cameras[i]
        # Of the view the camera tells; words for it come with --view-prompts alone.
        view = (float(azimuth), float(elevation)) if rng.uniform() < 0.25 else None
        captions.append(sample_caption(spec, rng, view=view))
    rgba = torch.from_numpy(np.array(cache.images[:count]))
    camera = torch.from_numpy(cache.cameras[:count].copy())
    cache.close()
    texts = [teacher.encode(captions[i : i + 512]).text for i in range(0, count, 512)]
    empty = teacher.encode("").text
    assert empty is not None
    return Pictures(
        rgba=rgba,
        text=torch.cat([text for text in texts if text is not None]),
        camera=camera,
        empty=empty,
    )


CARD_TEXT = """# Model card: the toybox teacher with guidance built in

A student of [the embedded teacher](../toybox/README.md) that takes the guidance scale as an input
and says in one pass what classifier-free guidance says in two, prompt and camera against neither
(arXiv 2210.03142, Section 3.1). `delta/` holds what it adds to the weights in `assets/toybox`: a
low-rank term of rank {rank} in every linear layer of the transformer, an embedder of the scale, the
last convolutions. It is tied to those weights by their hash; `weights.sha256` is the hash of both.

- **Licence**: Apache-2.0. **Data**: {pictures} pictures that the teacher made under guidance, and
  as many renders of the project's procedural world.
- **Compute**: {steps} steps of {batch} pictures in {minutes:.0f} minutes on the CPU:
  `scripts/distill_toybox_guidance.py --steps {steps} --batch {batch} --learning-rate {rate:g}`.
- **Scales**: {low:g} to {high:g}. Another scale, a negative prompt and guidance of the prompt alone
  are refused.
- **Measured**: of what guidance changes in the teacher's x0 (root mean square, noised pictures at
  uniform times) it misses {missed}. `scripts/compare_teachers.py` measures what that costs in
  meshes, and what it saves.
"""


def model_card(config: GuidanceConfig, measured: dict[str, float]) -> str:
    """The README.md beside the weights, with what was measured when they were made."""
    missed = [
        f"{100 * value:.0f} % at scale {name.removeprefix('missed_at_')}"
        for name, value in measured.items()
        if name.startswith("missed_at_")
    ]
    return CARD_TEXT.format(
        rank=RANK,
        pictures=f"{config.pictures:,}",
        steps=config.steps,
        batch=config.batch,
        minutes=measured["training_seconds"] / 60,
        rate=config.learning_rate,
        low=SCALES[0],
        high=SCALES[1],
        missed=", ".join(missed),
    )


def main() -> int:
    config = tyro.cli(GuidanceConfig)
    options = DistillConfig(
        method="guidance",
        teacher="toybox",
        steps=config.steps,
        nfe=8,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
        out=config.work,
    )
    stop = Stop()
    try:
        with stop.listening(), progress() as show:
            folder = distill_toybox(
                options,
                show,
                stop,
                more_pictures=lambda teacher: rendered(teacher, config),
                pictures=config.pictures,
                base=config.base,
            )
    except Sds3dError as error:
        print(f"distill_toybox_guidance: {error}", file=sys.stderr)
        return stop.exit_code if isinstance(error, Interrupted) else error.exit_code
    shutil.copytree(folder / TEACHER, config.out, dirs_exist_ok=True)
    measured = json.loads((folder / CARD).read_text(encoding="utf-8"))["measured"]
    (config.out / "README.md").write_text(model_card(config, measured), encoding="utf-8")
    print(json.dumps(measured | {"folder": str(config.out)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
