"""A picture of a few meshes, a row for each, as the evaluation saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sds3d.atomic import write_atomic
from sds3d.evaluate.raycast import SIDE, UnreadableMesh, read_glb, render
from sds3d.export import contact_sheet
from sds3d.export.glb import png_bytes

VIEWS_DEG = np.arange(8) * 45.0
ENLARGEMENT = 2


def write_sheet(meshes: Sequence[Path | None], path: Path) -> None:
    """Eight views of each mesh file on white; an empty row where there is none."""
    rows = [_views(mesh) for mesh in meshes]
    frames = np.concatenate(rows).repeat(ENLARGEMENT, axis=1).repeat(ENLARGEMENT, axis=2)
    write_atomic(path, png_bytes(contact_sheet(frames, columns=len(VIEWS_DEG))))


def _views(mesh: Path | None) -> np.ndarray:
    """uint8 [8, SIDE, SIDE, 3]."""
    blank = np.full((len(VIEWS_DEG), SIDE, SIDE, 3), 255, np.uint8)
    if mesh is None:
        return blank
    try:
        images = render(read_glb(mesh), VIEWS_DEG)
    except UnreadableMesh:
        return blank
    white = images[..., :3] + (1.0 - images[..., 3:])
    return np.round(white * 255.0).clip(0, 255).astype(np.uint8)
