"""The workers of a batch as Ray actors: the same jobs of the same store, done on other machines.

The store stays with the command, which alone claims jobs, sends each to an actor and writes down
what became of it. An actor that is lost is replaced, wherever there is room, and its item is
tried again as often as `--retries` says; it goes on from its checkpoint, for the output folder is
one that all the machines share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sds3d.batch.config import BatchConfig
from sds3d.batch.ray_cluster import divide, join_cluster
from sds3d.batch.ray_worker import RayWorker, Ready
from sds3d.errors import BadInput, OutputError, output_error
from sds3d.events import Listener, Warning
from sds3d.jobs.bench import Bench
from sds3d.jobs.job import Job
from sds3d.jobs.running import LOCKED_WAIT_SECONDS
from sds3d.jobs.states import FINISHED
from sds3d.jobs.store import Store
from sds3d.jobs.supervisor import (
    MOST_BACKOFF_SECONDS,
    MOST_FALSE_STARTS,
    OVERTIME_SECONDS,
    STALE_SECONDS,
    STARTUP_SECONDS,
    count_death,
    count_hang,
)
from sds3d.jobs.watch import REPORT_SECONDS
from sds3d.teachers import EMBEDDED, teacher_folder


@dataclass
class _Slot:
    """A place for one actor, who has it now, and the answers that it still owes."""

    name: str = ""
    actor: Any = None
    ready: Any = None
    look: Any = None
    asked_at: float = 0.0
    job: Job | None = None
    work: Any = None
    begun_at: float = 0.0
    restart_at: float = 0.0
    false_starts: int = 0
    trouble: str | None = None


class RayWorkers:
    """The workers of a batch's store on the cluster at `config.ray`; a `Supervisor` in its ways.

    `make_bench` is called in each actor. Methods raise BadInput where the cluster cannot be joined
    or has no room, or where a machine of it has another version or does not share the folder.
    """

    log: Path | None = None
    """What the actors print is in Ray's own logs, on their machines."""

    def __init__(
        self,
        config: BatchConfig,
        store: Store,
        *,
        workers: int,
        make_bench: Callable[[], Bench] = Bench,
        on_event: Listener,
    ) -> None:
        self._config = config
        self._store = store
        self._out = config.out.resolve()
        self._make_bench = make_bench
        self._on_event = on_event
        self._slots = [_Slot() for _ in range(workers)]
        self._token = self._out / f".sds3d-batch-{secrets.token_hex(6)}"
        self._ray: Any = None
        self._make_actor: Callable[[], Any] = lambda: None
        self._answered: set[Any] = set()
        self._waiting_since: float | None = None

    def start(self) -> None:
        """Join the cluster, divide it among the workers and start them."""
        assert self._config.ray is not None
        self._ray = join_cluster(self._config.ray)
        try:
            self._token.touch()
        except OSError as error:
            raise output_error(error, self._out) from error
        self._make_actor = self._actors()
        self._waiting_since = time.monotonic()
        self.tend()

    def tend(self) -> None:
        """Look after every worker once."""
        owed = [ref for s in self._slots for ref in (s.ready, s.look, s.work) if ref is not None]
        if owed:
            answered, _ = self._ray.wait(owed, num_returns=len(owed), timeout=0)
            self._answered = set(answered)
        for slot in self._slots:
            self._tend_slot(slot)
        self._warn_of_waiting()

    def close(self, grace_seconds: float = 20.0) -> None:
        """End the workers: each keeps a checkpoint and its job is queued again."""
        if self._ray is None:
            return
        ray, self._ray = self._ray, None
        try:
            busy = [slot for slot in self._slots if slot.work is not None]
            for slot in busy:
                slot.actor.end.remote()
            refs = [slot.work for slot in busy]
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=grace_seconds)
            for slot in busy:
                assert slot.job is not None
                try:
                    self._write_down(slot, ray.get(slot.work, timeout=0))
                except (ray.exceptions.RayError, TimeoutError):
                    self._store.release(slot.job.id, slot.name)
            for slot in self._slots:
                if slot.actor is not None:
                    ray.kill(slot.actor)
        finally:
            ray.shutdown()
            self._token.unlink(missing_ok=True)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trouble(self) -> str | None:
        """Why no worker comes up, in words; None where all is well."""
        return next((slot.trouble for slot in self._slots if slot.trouble is not None), None)

    # ------------------------------------------------------------------------------------------

    def _actors(self) -> Callable[[], Any]:
        """What makes one actor with its share of the cluster."""
        config, workers = self._config, len(self._slots)
        alive = [node.get("Resources", {}) for node in self._ray.nodes() if node["Alive"]]
        share = divide(
            [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive],
            workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            use_gpus=config.device != "cpu",
        )
        if config.device == "cuda" and share.gpus == 0:
            raise BadInput(f"--device is cuda but the cluster at --ray {config.ray} has no GPU")
        given = f"{share.cpus:g} processors and {share.gpus:g} GPUs for each"
        if share.room == 0:
            raise BadInput(
                f"no worker has room on the cluster at --ray {config.ray} ({given}): "
                "ask for less with --cpus-per-worker and --gpus-per-worker"
            )
        if share.room < workers:
            text = f"the cluster has room for {share.room} of {workers} workers ({given})"
            self._on_event(Warning(f"{text}; the others begin when there is more"))
        # Replaced by us: the item is to be tried by whoever is free first, and to be counted.
        worker = self._ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=4)(RayWorker)
        worker = worker.options(
            num_cpus=share.cpus, num_gpus=share.gpus, scheduling_strategy="SPREAD"
        )
        threads = max(1, int(share.cpus))
        return lambda: worker.remote(str(self._out), threads, self._make_bench)

    def _tend_slot(self, slot: _Slot) -> None:
        if slot.actor is None:
            if time.monotonic() >= slot.restart_at:
                self._spawn(slot)
            return
        try:
            if slot.ready is not None:
                if slot.ready not in self._answered:
                    return
                self.welcome(self._ray.get(slot.ready))
                slot.ready, slot.trouble, slot.false_starts = None, None, 0
                slot.asked_at = time.monotonic()
            if slot.work is not None and slot.work in self._answered:
                self._write_down(slot, self._ray.get(slot.work))
            self._look_for_life(slot)
        except self._ray.exceptions.RayError as error:
            self._bury(slot, _in_short(error))
            return
        if slot.actor is not None and slot.job is None:
            self._give(slot)

    def _spawn(self, slot: _Slot) -> None:
        slot.name = f"worker-{secrets.token_hex(4)}"
        slot.actor = self._make_actor()
        slot.ready = slot.actor.ready.remote(self._token.name)
        slot.look = slot.job = slot.work = None

    def welcome(self, ready: Ready) -> None:
        """Raise BadInput where a worker that has come up cannot do the batch's work."""
        mine = importlib.metadata.version("sds3d")
        if ready.version != mine:
            raise BadInput(
                f"{ready.host} has sds3d {ready.version} and this machine {mine}: install the same "
                "version on all machines of the cluster"
            )
        if not ready.sees_folder:
            raise OutputError(
                f"{ready.host} does not see {self._out}: with --ray, --out must be a folder that "
                "all machines of the cluster share, at the same path"
            )
        self._waiting_since = None

    def _give(self, slot: _Slot) -> None:
        """Send the first waiting job, if there is one."""
        job = slot.job = self._store.claim(slot.name)
        if job is None:
            return
        options = job.options
        options = dataclasses.replace(options, teacher=_for_all_machines(options.teacher))
        slot.begun_at = time.monotonic()
        slot.work = slot.actor.work.remote(options, job.timeout_seconds)

    def _write_down(self, slot: _Slot, found: Job) -> None:
        """Do to our row what the actor did to its own."""
        job, store = slot.job, self._store
        assert job is not None
        if found.state in FINISHED:
            kept = {name: getattr(found, name) for name in _KEPT}
            store.finish(job.id, slot.name, found.state, **kept)
        elif found.failures:
            assert found.error is not None
            assert found.reason is not None
            store.count_failure(job.id, slot.name, error=found.error, reason=found.reason)
        elif found.degraded is not None:
            degraded = "; ".join(filter(None, (job.degraded, found.degraded)))
            store.degrade(job.id, slot.name, found.options, degraded, folder=found.folder)
            store.release(job.id, slot.name, reason=found.reason)
        else:
            wait_seconds = LOCKED_WAIT_SECONDS if found.reason is not None else 0.0
            store.release(job.id, slot.name, wait_seconds=wait_seconds, reason=found.reason)
        # An answer about this job must not be taken for one about the next.
        slot.job = slot.work = slot.look = None
        slot.asked_at = time.monotonic()

    def _look_for_life(self, slot: _Slot) -> None:
        """Ask how far the worker is; one that does not answer or hangs in its job is ended."""
        if slot.look is not None and slot.look in self._answered:
            seen, slot.look = self._ray.get(slot.look), None
            if seen is not None and slot.job is not None:
                step, steps, eta = seen
                values = {"step": step, "steps": steps, "eta_seconds": eta}
                slot.job = self._store.report(slot.job.id, slot.name, **values) or slot.job
        if slot.look is None and time.monotonic() - slot.asked_at >= REPORT_SECONDS:
            slot.look = slot.actor.look.remote()
            slot.asked_at = time.monotonic()
        limit = None if slot.job is None else slot.job.timeout_seconds
        if slot.look is not None and time.monotonic() - slot.asked_at > STALE_SECONDS:
            self._bury(slot, f"it gave no sign of life for {STALE_SECONDS:g} s")
        elif limit is not None and time.monotonic() - slot.begun_at > limit + OVERTIME_SECONDS:
            self._bury(slot, f"its job took longer than {limit:g} s", timed_out=True)

    def _bury(self, slot: _Slot, reason: str, *, timed_out: bool = False) -> None:
        """A worker is lost, or to be ended: another takes its place."""
        # Where Ray only lost sight of it, it must not go on beside the next one.
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(slot.actor)
        if slot.job is None:
            if slot.ready is not None:
                slot.false_starts += 1
            if slot.false_starts >= MOST_FALSE_STARTS:
                slot.trouble = f"a worker cannot start on the cluster: {reason}"
            slot.restart_at = time.monotonic() + min(
                MOST_BACKOFF_SECONDS, 0.5 * 2**slot.false_starts
            )
        elif timed_out:
            count_hang(self._store, slot.job, slot.name)
        else:
            count_death(self._store, slot.job, slot.name, reason)
        slot.actor = slot.ready = slot.look = slot.job = slot.work = None

    def _warn_of_waiting(self) -> None:
        """Say once that the cluster keeps us waiting: it may be busy with the work of others."""
        since = self._waiting_since
        if since is not None and time.monotonic() - since > STARTUP_SECONDS:
            self._waiting_since = None
            self._on_event(
                Warning(f"no worker has come up for {STARTUP_SECONDS:g} s: is the cluster busy?")
            )


_KEPT = ("folder", "step", "reused", "error", "reason")


def _for_all_machines(teacher: str) -> str:
    """A teacher's folder by its whole path: what is relative here is not so elsewhere."""
    if teacher == EMBEDDED or teacher_folder(teacher) != Path(teacher):
        return teacher
    return str(Path(teacher).resolve())


def _in_short(error: Exception) -> str:
    """The sentence of Ray's text that says what happened; the rest are ids and a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor ")]
    if told and "creation task" not in told[-1]:
        return told[-1].split(". ")[0].rstrip(".")
    # An exception in the actor: its own text comes last.
    return (lines or [type(error).__name__])[-1][:200]
