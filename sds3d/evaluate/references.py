"""The exact renders of each shape, made once and kept on the disk.

The folder's name is made of the world's source, so that a changed world never meets old pictures.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from platformdirs import user_cache_path

from sds3d.atomic import write_atomic
from sds3d.evaluate.layers import (
    EXPORT_FRAME,
    VARIATIONS,
    Frame,
    Reference,
    Shape,
    code,
    decode,
    render_layers,
)
from sds3d.evaluate.raycast import DISTANCE, ELEVATION_DEG, FOVY_DEG, SIDE


def cache_folder() -> Path:
    """The user's folder for what can be computed again."""
    return user_cache_path("sds3d", appauthor=False)


def _world_hash() -> str:
    """Names what the layers depend on: the code (not its layout) of the world and of `layers`."""
    package = Path(__file__).resolve().parents[1]
    sources = sorted((package / "toybox").glob("*.py"))
    sources += [package / "evaluate" / "exact.py", package / "evaluate" / "layers.py"]
    digest = hashlib.sha256(repr((DISTANCE, ELEVATION_DEG, FOVY_DEG, SIDE)).encode())
    for path in sources:
        digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:16]


class References:
    """The reference of every shape that is asked for, made once and kept.

    They are kept in `folder`, unless that is None; `variations` below 16 serve tests.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        frame: Frame = EXPORT_FRAME,
        variations: int = VARIATIONS,
        threads: int | None = None,
    ) -> None:
        self.frame = frame
        self.variations = variations
        self._folder = folder
        self._hash = _world_hash()
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._made: dict[Shape, Reference] = {}

    def is_stored(self, shape: Shape) -> bool:
        """Whether the shape's renders need not be made again."""
        path = self._path(shape)
        return shape in self._made or (path is not None and path.exists())

    def __call__(self, shape: Shape) -> Reference:
        if shape not in self._made:
            self._made[shape] = self._load(shape) or self._make(shape)
        return self._made[shape]

    def _path(self, shape: Shape) -> Path | None:
        if self._folder is None:
            return None
        folder = f"{self.frame.name}-{self._hash}-{self.variations}"
        return self._folder / folder / f"{shape.name}.npz"

    def _load(self, shape: Shape) -> Reference | None:
        path = self._path(shape)
        if path is None:
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as stored:
                return decode(stored["layers"], stored["silhouettes"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return None  # absent or damaged: made again

    def _make(self, shape: Shape) -> Reference:
        with ThreadPoolExecutor(self._threads) as threads:
            made = list(
                threads.map(lambda v: render_layers(shape, v, self.frame), range(self.variations))
            )
        layers, silhouettes = (np.stack(arrays) for arrays in zip(*made, strict=True))
        coded, bits = code(layers, silhouettes)
        path = self._path(shape)
        if path is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, layers=coded, silhouettes=bits)
            # A cache that cannot be written costs time, nothing else.
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, buffer.getvalue())
        return decode(coded, bits)
