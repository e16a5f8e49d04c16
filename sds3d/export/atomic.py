"""Files that exist whole or not at all: a temporary name, fsync, rename."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sds3d.atomic import sync_folder
from sds3d.errors import OutputError, Sds3dError


class ExportError(Sds3dError):
    """A file could not be exported; nothing was left under its final name by this attempt."""


class DiskFullError(ExportError, OutputError):
    """No room left (or no quota); the file that stood there before, if any, is untouched."""


class NotWritableError(ExportError, OutputError):
    """The folder is missing, read-only or forbidden; nothing was changed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the final name.

    On any failure the temporary file is removed and `path` stays as it was. The suffix is kept,
    since encoders choose their format by it. Out of space becomes DiskFullError, and a folder that
    cannot be written NotWritableError.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _finish(temporary, path)
    except OSError as error:
        raise export_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> str:
    """Write a whole file atomically; returns its sha256 in hex."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def export_error(path: Path, error: OSError) -> ExportError:
    """The named error for an OSError met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"no space left to write {path.name} in {path.parent}; free some space, or choose "
            "another folder, and export again. Nothing was overwritten."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS):
        return NotWritableError(
            f"cannot write {path.name} in {path.parent} ({os.strerror(error.errno)}); choose a "
            "folder that exists and is writable."
        )
    return ExportError(f"could not write {path.name} in {path.parent}: {error}")


def _finish(temporary: Path, path: Path) -> None:
    # mkstemp makes private files; an export is as readable as any file the user makes.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
