"""Draw docs/toybox.png: every kind of the toybox world, seen from five sides.

python scripts/draw_toybox.py [--out docs/toybox.png]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw

from sds3d.toybox.colors import COLOR_NAMES
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, build
from sds3d.toybox.tracer import render_rgba

AZIMUTHS_DEG = (0.0, 45.0, 90.0, 180.0, 270.0)


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """out: the PNG. size: pixels of one view. columns: kinds side by side."""

    out: Path = Path("docs/toybox.png")
    size: int = 80
    columns: int = 2


def strip(kind: str, color: str, size: int) -> np.ndarray:
    """One kind from five sides on white, float64 [size, 5 size, 3]."""
    solid = build(SceneSpec(kind=kind, color=color), np.random.default_rng(KIND_NAMES.index(kind)))
    views = [render_rgba(solid, azimuth_deg=a, elevation_deg=20.0, size=size) for a in AZIMUTHS_DEG]
    return np.concatenate([v[..., :3] + (1.0 - v[..., 3:]) for v in views], axis=1)


def main() -> None:
    config = tyro.cli(SheetConfig)
    strips = [
        strip(kind, COLOR_NAMES[(5 * i) % len(COLOR_NAMES)], config.size)
        for i, kind in enumerate(KIND_NAMES)
    ]
    rows = -(-len(strips) // config.columns)
    height, width = strips[0].shape[:2]
    sheet = Image.new("RGB", (config.columns * (width + 90), rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (kind, pixels) in enumerate(zip(KIND_NAMES, strips, strict=True)):
        x, y = (i // rows) * (width + 90), (i % rows) * height
        sheet.paste(Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)), (x + 84, y))
        draw.text((x + 6, y + height // 2 - 6), kind, fill="black")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(config.out, optimize=True)


if __name__ == "__main__":
    main()
