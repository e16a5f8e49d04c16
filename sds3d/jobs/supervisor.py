"""Starts the workers of a store, and starts them again: computes nothing and imports no torch.

A worker that died is replaced, and its job is queued again to go on from its checkpoint; the one
that it kills for the second time is failed. What is left of an earlier supervisor's workers is
taken up too, and does not count against the jobs: they may have died with the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sds3d.errors import Sds3dError
from sds3d.jobs.errors import StoreInUse
from sds3d.jobs.job import Job
from sds3d.jobs.states import State
from sds3d.jobs.store import Store
from sds3d.jobs.store_reader import WorkerRow
from sds3d.runs import try_lock

STALE_SECONDS = 30.0
"""A worker that has not said for so long that it lives is taken for dead."""
STARTUP_SECONDS = 120.0
OVERTIME_SECONDS = 30.0
"""How long after its time a job may go on without looking at the clock."""
TEND_SECONDS = 0.2
MOST_FALSE_STARTS = 4
STEADY_SECONDS = 10.0
"""A worker that lived so long has come up well."""
MOST_BACKOFF_SECONDS = 30.0

WORKER_COMMAND = (sys.executable, "-m", "sds3d.jobs.worker")


@dataclass
class _Slot:
    """A place for one worker, and who has it now."""

    name: str = ""
    process: subprocess.Popen[bytes] | None = None
    spawned_at: float = 0.0
    restart_at: float = 0.0
    false_starts: int = 0
    trouble: str | None = None
    last_beat: float | None = None
    changed_at: float = 0.0
    unheard: bool = False
    killed_because: str | None = None
    timed_out: bool = False
    claim: tuple[str, float | None] | None = None
    claimed_at: float = 0.0


class Supervisor:
    """The workers of one store; a store has one supervisor at a time.

    `tend` must be called a few times a second, or `start` with `in_background`.
    """

    def __init__(
        self,
        store: Store,
        out: Path,
        *,
        workers: int = 1,
        command: Sequence[str] = WORKER_COMMAND,
        now: Callable[[], float] = time.monotonic,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self.store = store
        self.out = out
        self._store_trouble: str | None = None
        self.log = store.path.with_name("workers.log")
        self._command = tuple(command)
        self._slots = [_Slot() for _ in range(workers)]
        self._now = now
        self._stale_seconds = stale_seconds
        self._seen: dict[str, tuple[float, float]] = {}
        self._lock: int | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._tending = threading.Lock()

    def start(self, *, in_background: bool = False) -> None:
        """Take up the store's workers. Raises StoreInUse where another process has."""
        descriptor = os.open(
            self.store.path.with_name(".supervisor.lock"), os.O_RDWR | os.O_CREAT, 0o644
        )
        if not try_lock(descriptor):
            os.close(descriptor)
            raise StoreInUse(
                f"another sds3d already runs the jobs of {self.store.path.parent}: use that one, "
                "or another folder with --out"
            )
        self._lock = descriptor
        self.tend()
        if in_background:
            self._thread = threading.Thread(target=self._tend_on, name="supervisor", daemon=True)
            self._thread.start()

    def tend(self) -> None:
        """Look after every worker once; what the store refuses now is tried again next time."""
        with self._tending:
            try:
                self._take_up_orphans()
                for slot in self._slots:
                    self._tend_slot(slot)
                self._store_trouble = None
            except (Sds3dError, OSError) as error:
                self._store_trouble = str(error)

    def close(self, grace_seconds: float = 20.0) -> None:
        """End the workers: each keeps a checkpoint and gives its job back to the queue."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._tending:
            running = [slot for slot in self._slots if slot.process is not None]
            for slot in running:
                assert slot.process is not None
                with contextlib.suppress(ProcessLookupError):
                    slot.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            for slot in running:
                assert slot.process is not None
                try:
                    slot.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    slot.process.kill()
                    slot.process.wait()
                slot.process = None
                with contextlib.suppress(Sds3dError):
                    self._give_back(slot.name)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trouble(self) -> str | None:
        """Why no worker comes up, in words; None where all is well."""
        found = [slot.trouble for slot in self._slots if slot.trouble is not None]
        return self._store_trouble or (found[0] if found else None)

    def pids(self) -> list[int]:
        """The processes of the workers that run now."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    # ------------------------------------------------------------------------------------------

    def _tend_on(self) -> None:
        while not self._ended.wait(TEND_SECONDS):
            self.tend()

    def _tend_slot(self, slot: _Slot) -> None:
        if slot.process is None:
            if self._now() >= slot.restart_at:
                self._spawn(slot)
            return
        code = slot.process.poll()
        if code is not None:
            self._bury(slot, code)
            return
        if slot.killed_because is None:
            self._look_for_life(slot)
        if slot.killed_because is None:
            self._look_at_the_clock(slot)
        if slot.killed_because is not None:
            slot.process.kill()

    def _spawn(self, slot: _Slot) -> None:
        slot.name = f"worker-{secrets.token_hex(4)}"
        slot.spawned_at = slot.changed_at = self._now()
        slot.last_beat = slot.claim = None
        slot.killed_because, slot.timed_out, slot.unheard = None, False, False
        command = [*self._command, "--store", str(self.store.path), "--out", str(self.out)]
        command += ["--name", slot.name, "--parent", str(os.getpid())]
        command += ["--workers", str(len(self._slots))]
        try:
            with self.log.open("ab") as log:
                # A session of its own, so that a Ctrl-C in the terminal is the supervisor's alone.
                slot.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=self._environment(),
                )
        except OSError as error:
            # No memory for another process, or too many files open: it may pass.
            self._count_false_start(slot, str(error))

    def _count_false_start(self, slot: _Slot, reason: str) -> None:
        slot.false_starts += 1
        if slot.false_starts >= MOST_FALSE_STARTS:
            slot.trouble = f"the worker process cannot start ({reason}): see {self.log}"
        wait = min(MOST_BACKOFF_SECONDS, 0.5 * 2**slot.false_starts)
        slot.restart_at = self._now() + wait

    def _environment(self) -> dict[str, str]:
        """The processors are divided among the workers, unless the user has said how many."""
        threads = str(max(1, (os.cpu_count() or 1) // len(self._slots)))
        shared = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        return {**shared, **os.environ} if len(self._slots) > 1 else dict(os.environ)

    def _look_for_life(self, slot: _Slot) -> None:
        row = next((row for row in self.store.workers() if row.name == slot.name), None)
        beat = None if row is None else row.heartbeat
        if beat != slot.last_beat:
            slot.last_beat, slot.changed_at = beat, self._now()
        if self._now() - slot.spawned_at > STEADY_SECONDS and row is not None:
            slot.false_starts, slot.trouble = 0, None
        patience = STARTUP_SECONDS if slot.last_beat is None else self._stale_seconds
        # The time since we saw it change, not the row's own: a clock may be set, a laptop sleep.
        if self._now() - slot.changed_at > patience:
            if not self._could_be_heard(slot):
                return
            slot.killed_because = f"it gave no sign of life for {patience:g} s"

    def _could_be_heard(self, slot: _Slot) -> bool:
        """Whether a worker that says nothing could have. Raises where the store is not writable."""
        try:
            self.store.check_writable()
        except Sds3dError:
            slot.unheard = True
            raise
        if slot.unheard:
            # It can only now: its patience begins anew.
            slot.unheard, slot.changed_at = False, self._now()
            return False
        return True

    def _look_at_the_clock(self, slot: _Slot) -> None:
        job = self.store.active_of(slot.name)
        if job is None or job.timeout_seconds is None:
            slot.claim = None
            return
        if slot.claim != (job.id, job.started):
            # From when we saw it, not the row's own time: a clock may be set, a laptop sleep.
            slot.claim, slot.claimed_at = (job.id, job.started), self._now()
        if self._now() - slot.claimed_at > job.timeout_seconds + OVERTIME_SECONDS:
            slot.killed_because = f"its job took longer than {job.timeout_seconds:g} s"
            slot.timed_out = True

    def _bury(self, slot: _Slot, code: int) -> None:
        """A worker of ours has ended without being told to."""
        job = self.store.active_of(slot.name)
        reason = slot.killed_because or _how_it_ended(code)
        if job is None:
            self._count_false_start(slot, reason)
        elif slot.timed_out:
            slot.false_starts = 0
            count_hang(self.store, job, slot.name)
        else:
            slot.false_starts = 0
            count_death(self.store, job, slot.name, reason)
        self.store.forget_worker(slot.name)
        slot.process = None

    def _take_up_orphans(self) -> None:
        """Queue the jobs of workers that are not ours and show no life any more."""
        mine = {slot.name for slot in self._slots}
        rows = {row.name: row for row in self.store.workers() if row.name not in mine}
        for row in rows.values():
            if self._is_dead(row):
                self._give_back(row.name)
        for job in self.store.jobs((State.RUNNING, State.STOPPING)):
            # Claimed, and its worker's row is gone: it ended in between.
            gone = job.worker is not None and job.worker not in rows and job.worker not in mine
            if gone and job.worker is not None:
                self._give_back(job.worker)

    def _is_dead(self, row: WorkerRow) -> bool:
        if not _is_running(row.pid):
            return True
        beat, since = self._seen.get(row.name, (None, 0.0))
        if beat != row.heartbeat:
            self._seen[row.name] = (row.heartbeat, self._now())
            return False
        return self._now() - since > self._stale_seconds

    def _give_back(self, worker: str) -> None:
        job = self.store.active_of(worker)
        if job is not None:
            self.store.release(job.id, worker)
        self.store.forget_worker(worker)


def count_death(store: Store, job: Job, worker: str, reason: str) -> None:
    """Say of a job that its worker is no more: it is queued again, or failed if it was its last."""
    store.count_failure(
        job.id,
        worker,
        error="WorkerDied",
        reason=f"its worker process ended {_where(job)} ({reason}), {_time_of(job)}: if memory is "
        "short, use --preset fast",
    )


def count_hang(store: Store, job: Job, worker: str) -> None:
    """Say of a job that its worker did not look at the clock when its time was over, and was ended.

    A job that is only slow ends by itself, for good. What hangs may be the device or a drive: it is
    queued again for whoever is free, or failed if it was its last time.
    """
    store.count_failure(
        job.id,
        worker,
        error="Timeout",
        reason=f"it took longer than {job.timeout_seconds:g} s and hung {_where(job)}, "
        f"{_time_of(job)}: look at the device and the drives of that machine",
    )


def _where(job: Job) -> str:
    return f"at step {job.step} of {job.steps}" if job.step else "before it told of a step"


def _time_of(job: Job) -> str:
    return f"time {job.failures + 1} of {job.max_failures}"


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # no cheap way to tell: its heartbeat will
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
