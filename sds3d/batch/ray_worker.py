"""A worker of a batch on any machine of a Ray cluster: what an actor is made of. Imports no Ray.

It does one item at a time as a worker process of the job engine would, with a store in memory that
lives as long as the item: the queue is with the command that sent it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sds3d.config import GenerateConfig
from sds3d.jobs.bench import Bench
from sds3d.jobs.job import Job
from sds3d.jobs.store import Store
from sds3d.jobs.worker import Worker

FOLDER_SECONDS = 5.0
"""How long a file made on one machine may take until another one sees it."""
UNCOUNTED = 10**9


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a worker says when it has come up: where it is, and whether it can do the work there."""

    host: str
    version: str
    sees_folder: bool


class RayWorker:
    """One actor: its teacher is loaded with the first item and kept for the next.

    `ready`, `look` and `end` are called while `work` is at an item, from other threads.
    """

    def __init__(self, out: str, threads: int, make_bench: Callable[[], Bench]) -> None:
        # Before numba and torch are imported: they read it once.
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ[name] = str(threads)
        self._out = Path(out)
        self._bench = make_bench()
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._current: tuple[Store, str] | None = None

    def ready(self, token: str) -> Ready:
        """Look for the file `token`, which the command has made in its folder."""
        patience = time.monotonic() + FOLDER_SECONDS
        while not (sees := (self._out / token).is_file()) and time.monotonic() < patience:
            time.sleep(0.1)
        return Ready(
            host=platform.node(), version=importlib.metadata.version("sds3d"), sees_folder=sees
        )

    def work(self, config: GenerateConfig, timeout_seconds: float | None) -> Job:
        """Do one item once; returns its row.

        It is done or failed; or queued again with `failures` 1 for a defect, with other options
        and `degraded` where memory did not suffice, or as it was where another process is in its
        folder or `end` was called.
        """
        with Store(Path(":memory:")) as store:
            job = store.submit(config, max_failures=UNCOUNTED, timeout_seconds=timeout_seconds)
            with self._lock:
                self._current = store, job.id
            try:
                Worker(store, self._out, name="ray", bench=self._bench).run_next(self._ends.is_set)
                return store.get(job.id)
            finally:
                with self._lock:
                    self._current = None

    def look(self) -> tuple[int, int, float | None] | None:
        """The step, the steps and the remaining seconds of the present item, if there is one."""
        with self._lock:
            if self._current is None:
                return None
            store, job_id = self._current
            job = store.get(job_id)
        return job.step, job.steps, job.eta_seconds

    def end(self) -> None:
        """Keep a checkpoint within a step; no more items are begun."""
        self._ends.set()
