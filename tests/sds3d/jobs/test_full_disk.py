"""A disk that fills in the midst of a run: the job waits for room and goes on, within bounds."""

import contextlib
import errno
import sqlite3
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.errors import DiskFull, output_error
from sds3d.jobs.errors import DiskLow
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State
from sds3d.jobs.store import Store
from sds3d.jobs.supervisor import Supervisor

MakeConfig = Callable[..., GenerateConfig]


class _Disk:
    """A disk of whose free MiB the service asks, and which refuses to save after `refuses_at`."""

    def __init__(self) -> None:
        self.free = 100
        self.refuses_at: int | None = None
        self.free_then = 100
        """What is free once it has refused."""

    def check(self, *_: Any) -> None:
        if self.free < 50:
            raise DiskLow(self.free * 2**20, 50 * 2**20)

    def loop(self, fakes: SimpleNamespace) -> Any:
        """The loop of the fakes with a save after each step, on this disk."""
        disk = self

        class Loop(fakes.Loop):
            def __call__(self, *args: Any, checkpoint: Any, **how: Any) -> Any:
                whole = checkpoint.save

                def save(tensors: Any, meta: Any) -> None:
                    if meta["step"] == disk.refuses_at:
                        disk.free = disk.free_then
                        refused = OSError(errno.ENOSPC, "No space left on device")
                        raise output_error(refused, checkpoint.folder)
                    whole(tensors, meta)

                checkpoint.save = save
                return super().__call__(*args, checkpoint=checkpoint, **how)

        return Loop(save_every=1)


class _FullStore:
    """The store's own disk: it refuses the next `refusals` transactions, and each is counted."""

    def __init__(self, service: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusals = 0
        self.refused = 0
        database = service.store._database
        whole = database.transaction

        @contextlib.contextmanager
        def transaction() -> Iterator[sqlite3.Connection]:
            if self.refusals > 0:
                self.refusals -= 1
                self.refused += 1
                raise output_error(OSError(errno.ENOSPC, "No space left on device"), database.path)
            with whole() as connection:
                yield connection

        monkeypatch.setattr(database, "transaction", transaction)
        monkeypatch.setattr("sds3d.jobs.patience.STORE_WAIT_SECONDS", 0.01)
        monkeypatch.setattr("sds3d.jobs.worker.DISK_WAIT_SECONDS", 0.01)


@pytest.fixture
def full_store(service: JobService, monkeypatch: pytest.MonkeyPatch) -> _FullStore:
    return _FullStore(service, monkeypatch)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> _Disk:
    made = _Disk()
    monkeypatch.setattr("sds3d.jobs.running.check_disk", made.check)
    return made


def test_a_job_whose_disk_fills_waits_for_room_and_goes_on_from_its_checkpoint(
    service: JobService, make_config: MakeConfig, make_worker: Any, disk: _Disk, fakes: Any
) -> None:
    disk.refuses_at, disk.free_then = 5, 10
    jobs = [service.submit(make_config(seed=seed)) for seed in range(2)]
    loop = disk.loop(fakes)
    worker = make_worker(loop=loop)
    for _ in range(4):
        assert worker.run_next()
        waiting = service.get(jobs[0].id)
        assert (waiting.state, waiting.failures, waiting.error) == (State.QUEUED, 0, None)
        assert waiting.reason == (
            "waits for disk space: only 10 MiB are free for runs and 50 MiB are needed; "
            "delete some runs, and it goes on by itself"
        )
    # It was begun once, and its place in the queue is the old one.
    assert loop.steps_done == 5
    assert service.get(jobs[1].id).folder is None
    disk.refuses_at, disk.free = None, 100
    worker.run(until_idle=True)
    ends = [service.get(job.id) for job in jobs]
    assert {(job.state, job.step, job.reason) for job in ends} == {(State.DONE, 10, None)}
    # The fifth step was lost with its save, and no other.
    assert loop.steps_done == 5 + 6 + 10


def test_a_job_that_has_no_room_though_the_disk_has_is_tried_once_more(
    service: JobService, make_config: MakeConfig, make_worker: Any, disk: _Disk, fakes: Any
) -> None:
    """A quota, or a run that is larger than what is free: it must not go round for ever."""
    disk.refuses_at = 5
    job = service.submit(make_config())
    loop = disk.loop(fakes)
    make_worker(loop=loop).run(until_idle=True)
    failed = service.get(job.id)
    assert (failed.state, failed.failures, failed.error) == (State.FAILED, 2, "DiskFull")
    assert "no space left to write in" in str(failed.reason)
    assert loop.steps_done == 5 + 1
    # What it made is kept, and it can be continued.
    disk.refuses_at = None
    service.continue_(job.id)
    make_worker(loop=loop).run_next()
    assert (service.get(job.id).state, loop.steps_done) == (State.DONE, 5 + 1 + 6)


def test_a_job_that_waits_for_room_in_its_midst_can_be_cancelled(
    service: JobService, make_config: MakeConfig, make_worker: Any, disk: _Disk, fakes: Any
) -> None:
    disk.refuses_at, disk.free_then = 5, 10
    job = service.submit(make_config())
    make_worker(loop=disk.loop(fakes)).run_next()
    service.cancel(job.id)
    assert service.get(job.id).state is State.CANCELLED
    assert [path for path in service.out.iterdir() if path.is_dir()] == []


def test_a_full_disk_that_holds_the_store_too_costs_the_job_nothing(
    service: JobService,
    make_config: MakeConfig,
    make_worker: Any,
    disk: _Disk,
    full_store: _FullStore,
    fakes: Any,
) -> None:
    disk.refuses_at, disk.free_then = 5, 10
    job = service.submit(make_config())
    loop = disk.loop(fakes)

    def check_and_fill(*given: Any) -> None:
        # From the moment when the run asks why it was refused.
        if disk.free < 50:
            full_store.refusals = 5
        disk.check(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sds3d.jobs.running.check_disk", check_and_fill)
        assert make_worker(loop=loop).run_next()
    waiting = service.get(job.id)
    assert full_store.refused == 5
    assert (waiting.state, waiting.failures, waiting.error) == (State.QUEUED, 0, None)
    assert "waits for disk space" in str(waiting.reason)
    disk.refuses_at, disk.free = None, 100
    make_worker(loop=loop).run(until_idle=True)
    assert (service.get(job.id).state, loop.steps_done) == (State.DONE, 5 + 6)


@pytest.mark.parametrize("stage", ["claim", "report", "finish"])
def test_what_a_full_store_refuses_is_said_when_it_has_room(
    service: JobService,
    make_config: MakeConfig,
    make_worker: Any,
    full_store: _FullStore,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    whole = getattr(service.store, stage)

    def fill_once(*args: Any, **how: Any) -> Any:
        if full_store.refused == 0:
            full_store.refusals = 4
        return whole(*args, **how)

    monkeypatch.setattr(service.store, stage, fill_once)
    job = service.submit(make_config())
    make_worker().run(until_idle=True)
    done = service.get(job.id)
    assert full_store.refused == 4
    assert (done.state, done.step, done.failures, done.reason) == (State.DONE, 10, 0, None)


def test_a_worker_that_is_told_to_end_does_not_wait_for_the_stores_disk(
    service: JobService, make_config: MakeConfig, make_worker: Any, full_store: _FullStore
) -> None:
    job = service.submit(make_config())
    ends = False

    def must_end() -> bool:
        nonlocal ends
        if not ends and service.get(job.id).folder is not None:
            ends, full_store.refusals = True, 10**6
        return ends

    with pytest.raises(DiskFull):
        make_worker().run_next(must_end)
    full_store.refusals = 0
    # As a worker that was killed leaves it; whoever comes next goes on with it.
    assert service.get(job.id).state is State.RUNNING
    service.store.release(job.id, "worker")
    make_worker().run(until_idle=True)
    assert (service.get(job.id).state, service.get(job.id).failures) == (State.DONE, 0)


def test_a_worker_is_not_ended_for_what_the_stores_disk_kept_it_from_saying(
    service: JobService, make_config: MakeConfig, full_store: _FullStore
) -> None:
    passed = [0.0]
    silent = (sys.executable, "-c", "import time; time.sleep(600)")
    job = service.submit(make_config())
    with Supervisor(
        service.store, service.out, command=silent, now=lambda: passed[0], stale_seconds=30
    ) as supervisor:
        supervisor.start()
        (slot,) = supervisor._slots
        service.store.beat(slot.name, supervisor.pids()[0], "idle")
        assert service.store.claim(slot.name) is not None
        supervisor.tend()
        full_store.refusals = 10**6
        for _ in range(3):
            passed[0] += 31
            supervisor.tend()
            assert "no space left" in str(supervisor.trouble)
            assert slot.killed_because is None
        full_store.refusals = 0
        # Its beats can be heard again, and it has the time for one.
        for _ in range(2):
            supervisor.tend()
            assert (supervisor.trouble, slot.killed_because) == (None, None)
        passed[0] += 31
        supervisor.tend()
        assert "no sign of life" in str(slot.killed_because)
    assert service.get(job.id).failures == 0


def test_whether_a_store_can_be_written_leaves_nothing_in_it(
    service: JobService, make_config: MakeConfig
) -> None:
    store = service.store
    store.check_writable()
    assert store.workers() == []
    # SQLite's own refusal: no page more than there are.
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for seed in range(1000):
            store.submit(make_config(seed=seed))

    with pytest.raises(DiskFull, match="no space left"):
        fill()
    assert all(job.state is State.QUEUED for job in store.jobs())
    connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.submit(make_config())
    with Store(store.path) as other:
        assert len(other.jobs()) == len(store.jobs())
