"""Writing files so that a crash, a kill or a full disk never leaves half of one under its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from .errors import OutputError, output_error

PARTIAL_SUFFIX = ".partial"
MIN_FREE_BYTES = 64 * 2**20


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` under `path`: a temporary file beside it, flushed to the disk, then renamed.

    Until the rename the old content stays whole. Raises OSError, with the temporary file removed.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while len(view) > 0:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable_folder(folder: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
    """Make `folder` and prove by writing in it that results can be put there.

    Raises OutputError where it cannot be made, written, or has less than `min_free_bytes` left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise output_error(error, folder) from error
    if free < min_free_bytes:
        raise OutputError(
            f"only {free / 2**20:.0f} MiB are free in {folder}: free at least "
            f"{min_free_bytes / 2**20:.0f} MiB or choose another folder with --out"
        )
