"""Make the examples that the app shows at once: small meshes, thumbnails and a list of them.

    python scripts/make_examples.py [--prompts P ...] [--seeds S ...] [--preset fast]
        [--teacher toybox] [--runs outputs/examples] [--out assets/examples]

Each prompt is an ordinary run of `sds3d generate`, kept below --runs, so that one which is finished
is not made again. What else lies in --out as an example goes; the new list is written last.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from sds3d.atomic import sha256_file, write_atomic
from sds3d.config import GenerateConfig, PresetName
from sds3d.config_json import slug
from sds3d.generate import Generated, generate
from sds3d.presets import PRESETS, generate_config
from sds3d.progress import progress
from sds3d.ui.examples import LIST

PROMPTS = (
    "a red mushroom",
    "a yellow duck",
    "a blue chair with white legs",
    "a green rocket",
    "an orange car",
    "a pink mug",
)
MOST_BYTES = 3_000_000
THUMBNAIL = 192
GAP = 4
"""Pixels between the views of a contact sheet."""


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig:
    """Make the examples that the app shows at once."""

    prompts: tuple[str, ...] = PROMPTS
    """What to make."""
    seeds: tuple[int, ...] = (1,)
    """A seed for each prompt, or one for all."""
    preset: PresetName = "fast"
    """Preset of the runs."""
    teacher: str = "toybox"
    """Teacher of the runs."""
    max_faces: int = 5000
    """Most triangles of a mesh."""
    texture_size: int = 256
    """Side of a texture in pixels."""
    runs: Path = Path("outputs/examples")
    """Where the runs are kept."""
    out: Path = Path("assets/examples")
    """Where the examples go."""

    def runs_to_make(self) -> list[GenerateConfig]:
        """The options of each run."""
        seeds = self.seeds * len(self.prompts) if len(self.seeds) == 1 else self.seeds
        if len(seeds) != len(self.prompts):
            raise SystemExit(f"--seeds: give one, or {len(self.prompts)}, as many as prompts")
        mesh = dataclasses.replace(
            PRESETS[self.preset].mesh,
            formats=("glb",),
            max_faces=self.max_faces,
            texture_size=self.texture_size,
        )
        return [
            generate_config(
                self.preset,
                prompt=prompt,
                seed=seed,
                teacher=self.teacher,
                out=self.runs,
                mesh=mesh,
            )
            for prompt, seed in zip(self.prompts, seeds, strict=True)
        ]


def example_of(made: Generated, out: Path) -> dict[str, Any]:
    """Put a run's mesh and a thumbnail into `out`; returns its entry in the list."""
    result = made.result
    mesh, thumbnail = (f"{slug(result['prompt'])}{end}" for end in (".glb", ".png"))
    shutil.copyfile(made.folder / "mesh.glb", out / mesh)
    sheet = Image.open(made.folder / "preview.png").convert("RGB")
    side = (sheet.width - 3 * GAP) // 4
    # The second view: the front, a little from the side.
    picture = sheet.crop((side + GAP, 0, 2 * side + GAP, side))
    picture = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    picture.quantize(128).save(out / thumbnail, optimize=True)
    return {
        "prompt": result["prompt"],
        "seed": result["seed"],
        "preset": result["preset"],
        "seconds": round(result["seconds"]["total"], 1),
        "device": result["machine"]["device"],
        "faces": result["mesh"]["faces"],
        "weights_sha256": result["teacher"]["weights_sha256"],
        "mesh": mesh,
        "thumbnail": thumbnail,
        "sha256": {name: sha256_file(out / name) for name in (mesh, thumbnail)},
    }


def main() -> None:
    config = tyro.cli(ExamplesConfig)
    wanted = config.runs_to_make()
    with progress() as listen:
        made = [generate(options, on_event=listen) for options in wanted]
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / LIST).unlink(missing_ok=True)
    for path in (*config.out.glob("*.glb"), *config.out.glob("*.png")):
        path.unlink()
    entries = [example_of(run, config.out) for run in made]
    text = json.dumps({"examples": entries}, indent=2, ensure_ascii=False) + "\n"
    total = len(text) + sum(path.stat().st_size for path in config.out.iterdir())
    if total > MOST_BYTES:
        sys.exit(f"{total} bytes are more than {MOST_BYTES}: give fewer --max-faces, or prompts")
    write_atomic(config.out / LIST, text.encode())
    print(f"{config.out}: {len(entries)} examples, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
