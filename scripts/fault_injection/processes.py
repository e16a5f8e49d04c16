"""Processes that can be killed: forked in milliseconds from one that has imported everything.

A fork of this process would do as well, were it not that tests have threads. The server is Python's
own (multiprocessing's forkserver), told to import `warm` before its first fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .cheap import Said

PATIENCE_SECONDS = 120.0

Tell = Callable[[str], None]


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_injection.warm"])
    # The server does not inherit sys.path.
    with environment(PYTHONPATH=python_path(), OMP_NUM_THREADS="1"):
        multiprocessing.forkserver.ensure_running()
    return context


def python_path() -> str:
    """PYTHONPATH for a process that imports this package."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment that are set meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Child:
    """A process that calls `target(*arguments, tell)`; what it returns is the exit code.

    `tell` sends a line to the parent. What the child prints goes to files in `folder`.
    """

    def __init__(self, target: Callable[..., int], *arguments: Any, folder: Path) -> None:
        context = _server()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._told: list[str] = []
        self._reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(target, arguments, str(folder), writer), daemon=True
        )
        self._process.start()
        writer.close()

    def wait_for(self, line: str) -> None:
        """Wait until the child tells `line`. Raises RuntimeError where it ends before."""
        while line not in self._told:
            if not self._receive(PATIENCE_SECONDS):
                said = self.end()
                raise RuntimeError(f"the process never told {line!r} ({said.code}): {said.err}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended already takes no notice."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def end(self) -> Said:
        """Wait for the end; a negative code is the signal that ended it."""
        while self._receive(PATIENCE_SECONDS):
            pass
        self._process.join(PATIENCE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise RuntimeError("a process hung")
        code: int = self._process.exitcode
        self._process.close()
        self._reader.close()
        out = (self._folder / "stdout.txt").read_text("utf-8", "replace")
        err = (self._folder / "stderr.txt").read_text("utf-8", "replace")
        return Said(code=code, out=out, err=err)

    @property
    def told(self) -> list[str]:
        """What the child has told so far; all of it after `end`."""
        return self._told

    def _receive(self, seconds: float) -> bool:
        """Take one line; False where none comes any more."""
        try:
            if not self._reader.poll(seconds):
                return False
            self._told.append(self._reader.recv_bytes().decode())
        except (EOFError, OSError):
            return False
        return True


def _run(target: Callable[..., int], arguments: Any, folder: str, writer: Connection) -> None:
    for descriptor, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    code = target(*arguments, lambda line: writer.send_bytes(line.encode()))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: nothing of the server's is to be torn down here.
    os._exit(code)
