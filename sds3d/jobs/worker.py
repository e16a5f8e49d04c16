"""The process that computes: takes jobs from the store one at a time until it is told to end.

    python -m sds3d.jobs.worker --store JOBS.SQLITE3 --out DIR --name NAME

It says once a second that it lives. SIGTERM, or the end of the process that started it, makes it
keep a checkpoint within a step and put its job back into the queue.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sds3d.errors import EXIT_INTERNAL, EXIT_OK, OutputError, Sds3dError
from sds3d.jobs.bench import Bench
from sds3d.jobs.running import Running
from sds3d.jobs.store import Store
from sds3d.signals import Stop

HEARTBEAT_SECONDS = 1.0
IDLE_SECONDS = 0.2
DISK_WAIT_SECONDS = 5.0
"""Between two looks whether the disk has room again."""


class Worker:
    """Works off the jobs of a store; `out` is the folder of the run folders."""

    def __init__(
        self,
        store: Store,
        out: Path,
        *,
        name: str,
        bench: Bench | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        is_orphaned: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store = store
        self.out = out
        self.name = name
        self.doing = "idle"
        self._bench = bench or Bench()
        self._heartbeat_seconds = heartbeat_seconds
        self._is_orphaned = is_orphaned
        self._orphaned = False
        self._waits_for_disk = False

    def run(
        self, must_end: Callable[[], bool] = lambda: False, *, until_idle: bool = False
    ) -> None:
        """Work until `must_end`; with `until_idle`, until nothing waits."""

        def ends() -> bool:
            return self._orphaned or must_end()

        with self._beating():
            while not ends():
                if not self.run_next(ends):
                    if until_idle:
                        return
                    time.sleep(IDLE_SECONDS)
                elif self._waits_for_disk:
                    self._pause(ends)

    def run_next(self, must_end: Callable[[], bool] = lambda: False) -> bool:
        """Claim the first waiting job and work on it; False where none waits."""
        try:
            job = self.store.claim(self.name)
        except OutputError:
            # The store's own disk is full: one does wait, and nothing was claimed.
            self._waits_for_disk = True
            return True
        if job is None:
            return False
        self.doing = job.id
        try:
            running = Running(
                job,
                store=self.store,
                out=self.out,
                worker=self.name,
                bench=self._bench,
                must_end=must_end,
            )
            running.run()
        finally:
            self.doing = "idle"
        self._waits_for_disk = running.waits_for_disk
        return True

    @staticmethod
    def _pause(ends: Callable[[], bool]) -> None:
        """Claim nothing for a while: whichever job it was, it would go back to the queue."""
        until = time.monotonic() + DISK_WAIT_SECONDS
        while time.monotonic() < until and not ends():
            time.sleep(min(IDLE_SECONDS, DISK_WAIT_SECONDS))

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        ended = threading.Event()
        with contextlib.suppress(OutputError):
            self.store.beat(self.name, os.getpid(), self.doing)

        def beat() -> None:
            while not ended.wait(self._heartbeat_seconds):
                self._orphaned = self._orphaned or self._is_orphaned()
                # A store that cannot be written now may be again at the next beat.
                with contextlib.suppress(Sds3dError):
                    self.store.beat(self.name, os.getpid(), self.doing)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            # A supervisor forgets who is no more, too.
            with contextlib.suppress(OutputError):
                self.store.forget_worker(self.name)


def main(words: Sequence[str] | None = None, *, bench: Bench | None = None) -> int:
    """The process of a worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sds3d.jobs.worker", description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="the store's file")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders are")
    parser.add_argument("--name", required=True, help="a name that no other worker has")
    parser.add_argument("--parent", type=int, help="the process to end with")
    parser.add_argument("--workers", type=int, default=1, help="how many share the device")
    given = parser.parse_args(words)
    stop = Stop()
    try:
        with stop.listening(), Store(given.store) as store:
            Worker(
                store,
                given.out,
                name=given.name,
                bench=bench or Bench(workers=given.workers),
                is_orphaned=lambda: given.parent is not None and os.getppid() != given.parent,
            ).run(stop)
    except KeyboardInterrupt:
        return stop.exit_code
    except Sds3dError as error:
        print(f"sds3d worker: {error}", file=sys.stderr)
        return EXIT_INTERNAL
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
