"""Views side by side in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sds3d.export.atomic import write_bytes
from sds3d.export.glb import png_bytes
from sds3d.export.turntable import as_frames


def contact_sheet(
    frames: np.ndarray | Sequence[np.ndarray], *, columns: int = 4, gap: int = 4
) -> np.ndarray:
    """Frames [N, H, W, 3] uint8 in rows of `columns`, white gaps between; one [H', W', 3] image."""
    if columns < 1 or gap < 0:
        raise ValueError(f"columns must be at least 1 and gap not negative, got {columns}, {gap}.")
    film = as_frames(frames)
    count, height, width, _ = film.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8
    )
    for index, frame in enumerate(film):
        top = index // columns * (height + gap)
        left = index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def export_contact_sheet(
    frames: np.ndarray | Sequence[np.ndarray], path: Path, *, columns: int = 4
) -> dict[str, str]:
    """Write contact_sheet(frames) as a PNG, atomically; returns {path: sha256}."""
    return {str(path): write_bytes(path, png_bytes(contact_sheet(frames, columns=columns)))}
