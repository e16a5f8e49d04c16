"""Draw the README's picture from finished runs: four sides of each mesh with prompt and figures.

    python scripts/draw_gallery.py RUN [RUN ...] [--out docs/gallery.png]

The pictures are the first views of each run's preview.png, which shows the exported mesh; prompt,
seed, seconds and device are read from its result.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw

TILE = 150
VIEWS = (0, 1, 2, 4)
"""Which of the contact sheet's eight views are shown: front, front left, side, back."""


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """runs: folders of finished runs. out: the PNG. columns: runs side by side."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("docs/gallery.png")
    columns: int = 2


def views_of(run: Path, views: tuple[int, ...] = VIEWS, tile: int = TILE) -> list[Image.Image]:
    """The chosen views of a run's contact sheet of 4 x 2 views, as squares of `tile` pixels."""
    sheet = Image.open(run / "preview.png").convert("RGB")
    side = (sheet.width - 3 * 4) // 4
    tiles = []
    for view in views:
        x, y = (view % 4) * (side + 4), (view // 4) * (side + 4)
        square = sheet.crop((x, y, x + side, y + side))
        tiles.append(square.resize((tile, tile), Image.Resampling.LANCZOS))
    return tiles


def main() -> None:
    config = tyro.cli(GalleryConfig)
    rows = -(-len(config.runs) // config.columns)
    width, height = len(VIEWS) * TILE + 20, TILE + 34
    sheet = Image.new("RGB", (config.columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, run in enumerate(config.runs):
        result = json.loads((run / "result.json").read_text())
        x, y = (i % config.columns) * width + 10, (i // config.columns) * height
        for k, tile in enumerate(views_of(run)):
            sheet.paste(tile, (x + k * TILE, y))
        machine = result["machine"]
        device = f"{machine['threads']} CPU threads" if machine["device"] == "cpu" else "CUDA"
        text = (
            f"{result['prompt']}   seed {result['seed']}, preset {result['preset']}, "
            f"{result['seconds']['total']:.0f} s on {device}"
        )
        draw.text((x + 4, y + TILE + 8), text, fill="black")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(config.out, optimize=True)


if __name__ == "__main__":
    main()
