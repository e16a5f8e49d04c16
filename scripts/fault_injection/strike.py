"""SIGKILL at the k-th system call that changes a run's folder, a write being cut in its middle."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sds3d import atomic

_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


class Strike:
    """Counts this process's changes below `folder`, and kills it before the `deadly`-th.

    Opening a file for writing, renaming, removing, and in `sds3d.atomic` each write and sync count
    as changes. There is no way back: this is for a process that is to die, or that ends soon.
    """

    def __init__(self, folder: Path, deadly: int) -> None:
        self.calls = 0
        self._folder = str(folder)
        self._deadly = deadly

    def begin(self) -> None:
        """Count from now on."""
        sys.addaudithook(self._hear)
        patched: Any = atomic
        patched.os = _StruckOs(self)

    def count(self) -> bool:
        """Count a change; whether it is the deadly one."""
        self.calls += 1
        return self.calls == self._deadly

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not str(arguments[0]).startswith(self._folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if self.count():
            die()


class _StruckOs:
    """The module `os`, but for the calls that audit hooks are not told of."""

    def __init__(self, strike: Strike) -> None:
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._strike.count():
            os.write(descriptor, data[: len(data) // 2])
            die()
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        if self._strike.count():
            die()
        os.fsync(descriptor)


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
