"""Compiled kernels on disk, so that only the first run on a machine compiles them.

A file is named by what it was made from, so that it never grows stale, and begins with a hash of
what follows, so that a torn one is seen. It is written under a name of its own, flushed, and then
renamed: another process sees it whole or not at all, and of two that write, the later one wins
with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

from platformdirs import user_cache_path

__all__ = ["KernelCache", "default_folder"]

_MAGIC = b"sds3d-kernel-1\n"
_ABANDONED_SECONDS = 3600.0


def default_folder() -> Path:
    """The kernels' part of the user's caches: below $XDG_CACHE_HOME or ~/.cache on Linux."""
    try:
        base = user_cache_path("sds3d", appauthor=False)
    except RuntimeError:  # a user without a home, as in some containers
        base = Path(tempfile.gettempdir()) / "sds3d"
    return base / "kernels"


class KernelCache:
    """Compiled kernels in a folder. A folder that cannot be used costs time and is no error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of the kernel with this key."""
        return self.folder / f"{key}.kernel"

    def read(self, key: str) -> bytes | None:
        """What was kept under `key`; None where nothing is or where it is not whole."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + hashlib.sha256().digest_size
        code = content[head:]
        whole = content[:head] == _MAGIC + hashlib.sha256(code).digest()
        return code if whole and code else None

    def write(self, key: str, code: bytes) -> bool:
        """Keep `code` under `key`. Returns whether that worked."""
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._drop_abandoned()
            descriptor, temporary = tempfile.mkstemp(suffix=".partial", dir=self.folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(code).digest() + code)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(key))
        except OSError:
            return False
        finally:
            # After the rename there is nothing under this name; after a failure, half a file.
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        with contextlib.suppress(OSError):  # not every system flushes folders
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return True

    def _drop_abandoned(self) -> None:
        """Remove what processes left behind that died while they wrote."""
        for path in self.folder.glob("*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
