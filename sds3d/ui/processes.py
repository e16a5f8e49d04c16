"""Commands of the command line as processes of their own, whose events are heard line by line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sds3d.errors import Sds3dError

GRACE_SECONDS = 5.0
COMMAND = (sys.executable, "-m", "sds3d.cli")


class CommandFailed(Sds3dError):
    """A command ended without its result. The text is what it said."""


def ignore(_: dict[str, Any]) -> None:
    """A listener that listens to nothing."""


class Processes:
    """Starts commands with `--json`, and ends what still runs when it is closed.

    What they write to stderr is added to the file `log`.
    """

    def __init__(self, log: Path, command: Sequence[str] = COMMAND) -> None:
        self._log = log
        self._command = tuple(command)
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        words: Sequence[str],
        on_event: Callable[[dict[str, Any]], None] = ignore,
        *,
        timeout_seconds: float,
        should_stop: threading.Event | None = None,
    ) -> list[dict[str, Any]]:
        """Run `sds3d WORDS --json` to its end; returns its events, the last one its result.

        Raises CommandFailed where it fails, takes longer than `timeout_seconds`, or is stopped.
        """
        events: list[dict[str, Any]] = []
        with self._started(words) as process:
            ended = threading.Event()
            watch = threading.Thread(
                target=_end_in_time, args=(process, ended, timeout_seconds, should_stop)
            )
            watch.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    event = _event(line)
                    if event is not None:
                        events.append(event)
                        on_event(event)
                process.wait()
            finally:
                ended.set()
                watch.join()
        if process.returncode != 0:
            raise CommandFailed(_why(events, process.returncode, should_stop))
        return events

    @contextlib.contextmanager
    def _started(self, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        name, *rest = words
        with self._log.open("ab") as log, self._lock:
            if self._closed:
                raise CommandFailed("the server is being closed")
            process = subprocess.Popen(
                [*self._command, name, "--json", *rest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            with process:
                yield process
        finally:
            self._running.discard(process)

    def close(self) -> None:
        """End every command that runs, and start none any more."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()


def _end_in_time(
    process: subprocess.Popen[str],
    ended: threading.Event,
    timeout_seconds: float,
    should_stop: threading.Event | None,
) -> None:
    left = timeout_seconds
    while not ended.wait(0.1):
        left -= 0.1
        if left < 0 or (should_stop is not None and should_stop.is_set()):
            process.terminate()
            if not ended.wait(GRACE_SECONDS):
                process.kill()
            return


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _why(events: list[dict[str, Any]], code: int, should_stop: threading.Event | None) -> str:
    if should_stop is not None and should_stop.is_set():
        return "stopped; the same again goes on from where it was"
    if events and events[-1]["event"] == "failure":
        return str(events[-1].get("text"))
    return f"the process ended with code {code}; app.log in the output folder says more"
