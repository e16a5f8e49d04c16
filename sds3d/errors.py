"""What can go wrong for a user, each with its exit code and a sentence that says what to do.

Everything raised on purpose by the application is a `Sds3dError`; the command line prints its
text as one line and exits with its code. Any other exception is a defect of the program.
"""

from __future__ import annotations

import errno
from pathlib import Path

from core import out_of_memory

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_FAILURES = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Sds3dError(Exception):
    """Base of every error that the user can do something about."""

    exit_code = EXIT_INTERNAL


class BadInput(Sds3dError):
    """The request cannot be carried out as it was given."""

    exit_code = EXIT_USAGE


class ConfigError(BadInput):
    """An option has a value that it cannot have. The text names the option and the remedy."""


class PromptError(BadInput):
    """The prompt is empty, too long, holds control characters or nothing that the teacher knows."""


class OutputError(BadInput):
    """The output folder cannot be written or has no space left."""


class DiskFull(OutputError):
    """The disk or a quota had no room for what was to be written; what was saved before is kept."""


class RunError(BadInput):
    """A run folder is not one, is not finished, or does not belong to this request."""


class RunLocked(RunError):
    """Another process is working in the run folder."""


class CorruptCheckpoint(RunError):
    """A checkpoint does not match its recorded hash: it was truncated or its bytes changed."""


class TeacherError(BadInput):
    """The teacher's weights are missing, damaged, or not those that the run was made with."""


class EmptyField(Sds3dError):
    """The optimised field holds no surface, so that there is nothing to export."""


class Diverged(Sds3dError):
    """The optimisation kept producing numbers that are not finite."""


class TooLittleMemory(BadInput):
    """The machine or the device had no memory left; what was saved of a run is kept."""

    def __init__(self, folder: Path) -> None:
        from .user_config import config_path

        super().__init__(
            "out of memory: close other programs, or set checkpoint_vae = true (and, for UNets, "
            f"attention_slicing = true) under [teacher] in {config_path()}, and go on with: sds3d "
            f"generate --resume {quoted(folder)}; or make it anew with fewer --views-per-step, "
            "smaller --resolutions, a smaller --mesh-resolution, a smaller --preset (fast), or a "
            "lower image_size in that file"
        )
        self.folder = folder


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system or the device had no memory left."""
    return isinstance(error, TooLittleMemory) or out_of_memory.is_out_of_memory(error)


class Interrupted(Sds3dError):
    """The user stopped the run; it can be continued from its folder."""

    exit_code = EXIT_SIGINT

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; continue with: sds3d generate --resume {quoted(folder)}")
        self.folder = folder


class DistillationStopped(Interrupted):
    """The user stopped a distillation; the same command goes on from its checkpoint."""

    def __init__(self, folder: Path, step: int | None = None, steps: int | None = None) -> None:
        where = "its last checkpoint" if step is None else f"step {step} of {steps}"
        Sds3dError.__init__(self, f"stopped; the same command goes on from {where}")
        self.folder = folder


def quoted(path: Path) -> str:
    """The path as a shell would take it."""
    import shlex

    return shlex.quote(str(path))


def is_write_error(error: OSError, folder: Path) -> bool:
    """Whether the system refused a write under `folder`, rather than something else going wrong."""
    named = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
    return named or error.errno in _DISK_FULL


def output_error(error: OSError, folder: Path) -> OutputError:
    """The named error for a write under `folder` that the system refused."""
    if error.errno in _DISK_FULL:
        return DiskFull(
            f"no space left to write in {folder}: free some, then run the same command again; "
            "what was already saved is kept"
        )
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write in {folder} ({reason}): choose another folder with --out "
        "or correct its permissions"
    )
