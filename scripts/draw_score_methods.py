"""Make docs/score-methods.png: what each method of score distillation makes of an image.

    python scripts/draw_score_methods.py

Each picture is a run of `sds3d generate --target image`: no field and no renderer, the same
teacher, camera, seed and steps for all, so that what differs is the method. The table that goes
with the picture into docs/score-methods.md says how often kind and colour are the ones asked for
(by comparison with exact renders of the world, as scripts/evaluate_teacher.py judges the teacher's
own samples) and how many passes of the network a step took for each noise (the twin's of VSD among
them, its backward pass not). Runs that are finished in --work are taken as they are, so that a
second call goes on where the first was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import get_args

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw

from evaluate_teacher import Request, judge
from method_runs import RECIPES, Passes, counted_parts, write_part
from sds3d.config import DeviceName, GenerateConfig
from sds3d.errors import Sds3dError
from sds3d.evaluate.layers import TEACHER_FRAME
from sds3d.evaluate.raycast import ELEVATION_DEG, SIDE
from sds3d.evaluate.references import References, cache_folder
from sds3d.generate import Parts, generate
from sds3d.optimize_config import ImageOptions, MethodName, OptimizeConfig
from sds3d.toybox.captions import plain_caption
from sds3d.toybox.scenes import SceneSpec

TILE = 128
LEFT, TOP = 110, 24


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Draw the grid of methods and prompts."""

    methods: tuple[MethodName, ...] = get_args(MethodName)
    """Rows of the grid."""
    prompts: tuple[str, ...] = ("red mushroom", "blue chair", "yellow duck", "green rocket")
    """Columns, as colour and kind."""
    steps: int = 200
    """Steps of each run."""
    seed: int = 0
    """Seed of each run."""
    guidance_scale: float = OptimizeConfig.guidance_scale
    """Guidance of each run."""
    azimuth_deg: float = 37.5
    """Where the camera stands; it looks from as high as that of the exact renders."""
    teacher: str = "toybox"
    """The embedded teacher, or the folder of one."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    work: Path = Path("outputs/score-methods")
    """Folder of the runs."""
    out: Path = Path("docs/score-methods.png")
    """The PNG."""
    page: Path = Path("docs/score-methods.md")
    """The page whose part between the marks "grid" is written anew."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One picture of the grid."""

    picture: np.ndarray
    kind: bool
    color: bool
    passes: float
    seconds: float


def options(config: GridConfig, method: MethodName) -> OptimizeConfig:
    """Of a run of this method."""
    image = ImageOptions(azimuth_deg=config.azimuth_deg, elevation_deg=ELEVATION_DEG)
    own = {"guidance_scale": config.guidance_scale, **RECIPES.get(method, {})}
    return OptimizeConfig(target="image", method=method, steps=config.steps, image=image, **own)


def make(
    config: GridConfig,
    method: MethodName,
    prompt: str,
    parts: Parts,
    counter: Passes,
    references: References,
) -> Made:
    """Run the method on the prompt, or take the run that is there, and judge its image."""
    color, kind = prompt.split()
    spec = SceneSpec(kind=kind, color=color)
    given = GenerateConfig(
        prompt=plain_caption(spec),
        seed=config.seed,
        teacher=config.teacher,
        device=config.device,
        out=config.work,
        optimize=options(config, method),
    )
    counter.samples = 0
    done = generate(given, parts=parts)
    note = done.folder / "passes.txt"
    noises = config.steps * given.optimize.views_per_step
    if counter.samples:
        note.write_text(f"{counter.samples / noises:.1f}\n")
    with Image.open(done.folder / "image.png") as image:
        # The file is enlarged by whole numbers.
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
        picture = np.asarray(image.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST))
    pixels = np.asarray(small, dtype=np.float32) / 255
    request = Request(spec=spec, azimuth_deg=config.azimuth_deg, held_out=False)
    answer = judge(pixels, request, references, asymmetric=False)
    return Made(
        picture=picture,
        kind=answer.kind,
        color=answer.color,
        passes=float(note.read_text()) if note.is_file() else float("nan"),
        seconds=done.result["seconds"]["optimize"],
    )


def table(rows: dict[str, list[Made]]) -> str:
    """A line for each method."""
    lines = [
        "| method | right kind | right colour | passes per noise |",
        "|---|---|---|---|",
    ]
    for method, made in rows.items():
        kind, color = sum(m.kind for m in made), sum(m.color for m in made)
        lines.append(
            f"| `{method}` | {kind} of {len(made)} | {color} of {len(made)} "
            f"| {fmean(m.passes for m in made):.1f} |"
        )
    return "\n".join(lines)


def described(config: GridConfig, weights_sha256: str) -> str:
    """The picture, and how it was made."""
    return (
        f"![{len(config.methods)} methods on {len(config.prompts)} prompts]({config.out.name})\n\n"
        f"{config.steps} steps, seed {config.seed}, guidance {config.guidance_scale:g}, azimuth "
        f"{config.azimuth_deg:g}°, {torch.get_num_threads()} threads, teacher "
        f"`{weights_sha256[:12]}`. Options beside the defaults: `RECIPES` in "
        "`scripts/method_runs.py`. So few pictures are no statistics."
    )


def grid(rows: dict[str, list[Made]], prompts: tuple[str, ...]) -> Image.Image:
    """The pictures with the methods' names on the left and the prompts above."""
    size = (LEFT + len(prompts) * (TILE + 4), TOP + len(rows) * (TILE + 4))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        draw.text((LEFT + column * (TILE + 4) + 4, 6), prompt, fill="black")
    for row, (method, made) in enumerate(rows.items()):
        y = TOP + row * (TILE + 4)
        draw.text((8, y + TILE // 2 - 6), method, fill="black")
        for column, one in enumerate(made):
            sheet.paste(Image.fromarray(one.picture), (LEFT + column * (TILE + 4), y))
    return sheet


def main() -> int:
    config = tyro.cli(GridConfig)
    config.work.mkdir(parents=True, exist_ok=True)
    references = References(cache_folder() / "references", frame=TEACHER_FRAME)
    rows: dict[str, list[Made]] = {}
    try:
        parts, teacher, counter = counted_parts(config.teacher, config.device)
        for method in config.methods:
            rows[method] = []
            for prompt in config.prompts:
                one = make(config, method, prompt, parts, counter, references)
                rows[method].append(one)
                print(f"{method}, {prompt}: {one.seconds:.0f} s", file=sys.stderr, flush=True)
    except Sds3dError as error:
        print(f"draw_score_methods: {error}", file=sys.stderr)
        return error.exit_code
    config.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, config.prompts).save(config.out, optimize=True)
    part = f"{described(config, teacher.weights_sha256)}\n\n{table(rows)}"
    write_part(config.page, "grid", part)
    print(part)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
