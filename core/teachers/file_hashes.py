"""SHA-256 of large files, remembered on the disk as long as a file is the one that was read.

A teacher of several gigabytes is named by its hash at every start. A file that still has the size,
the times and the inode that it had is not read again; whatever is wrong with what is remembered,
it is forgotten and the file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from platformdirs import user_cache_path

__all__ = ["LEAST_BYTES", "file_sha256"]

LEAST_BYTES = 64 * 2**20
"""Smaller files are read in the blink of an eye, and are not remembered."""

_SETTLED_NS = 2 * 10**9
"""A file changed as lately as this may change again within one tick of its clock."""


def file_sha256(path: Path, *, folder: Path | None = None, least_bytes: int = LEAST_BYTES) -> bytes:
    """The SHA-256 of a file, 32 bytes; `folder` is where hashes are kept, by default the user's.

    Raises OSError where the file cannot be read, and never for what is remembered.
    """
    before = _state(path)
    if before["size"] < least_bytes:
        return _read(path)
    folder = folder or user_cache_path("sds3d", appauthor=False) / "hashes"
    note = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    remembered = _remembered(note, before)
    if remembered is not None:
        return remembered
    found = _read(path)
    settled = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > _SETTLED_NS
    if settled and _state(path) == before:
        _remember(note, {**before, "sha256": found.hex()})
    return found


def _state(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        # Unlike the other one, this time cannot be set by whoever exchanges a file (on Windows it
        # is that of the file's making).
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _remembered(note: Path, state: dict[str, int]) -> bytes | None:
    try:
        document = json.loads(note.read_bytes())
        digest = bytes.fromhex(document.pop("sha256"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return digest if document == state and len(digest) == 32 else None


def _remember(note: Path, document: dict[str, int | str]) -> None:
    """Write the note whole or not at all; a disk that is full or read-only costs a reading."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=note.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                json.dump(document, file)
            os.replace(name, note)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
