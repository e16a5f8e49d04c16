"""The queue on the disk: each job goes one way, whoever else tries, and survives a restart."""

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.errors import OutputError
from sds3d.jobs.errors import QueueFull, StoreError, UnknownJob
from sds3d.jobs.limits import LimitsConfig, check_queue
from sds3d.jobs.states import ACTIVE, FINISHED, TRANSITIONS, Request, State
from sds3d.jobs.store import MOST_WAIT_SECONDS, Store

MakeConfig = Callable[..., GenerateConfig]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
def store(path: Path) -> Any:
    with Store(path) as made:
        yield made


def test_a_job_comes_back_as_it_was_and_in_its_turn(store: Store, make_config: MakeConfig) -> None:
    config = make_config(seed=7)
    first, second = store.submit(config), store.submit(make_config("a blue mushroom"))
    assert first.state is State.QUEUED
    assert store.get(first.id).options == config
    assert (first.steps, first.step, first.folder, first.worker) == (10, 0, None, None)
    assert (store.ahead_of(first), store.ahead_of(second)) == (0, 1)
    assert [job.id for job in store.jobs()] == [second.id, first.id]
    assert [job.id for job in store.jobs(search="BLUE")] == [second.id]
    claimed = [store.claim("w"), store.claim("w"), store.claim("w")]
    assert [job and job.id for job in claimed] == [first.id, second.id, None]
    assert claimed[0] is not None
    assert claimed[0].state is State.RUNNING
    with pytest.raises(UnknownJob, match="nope"):
        store.get("nope")


def test_many_processes_that_claim_share_the_jobs_without_one_twice(
    path: Path, store: Store, make_config: MakeConfig
) -> None:
    """Each thread has a connection of its own, as a process would; all begin at once."""
    jobs, threads = 60, 8
    ids = {store.submit(make_config(seed=i)).id for i in range(jobs)}
    barrier = threading.Barrier(threads)

    def claim_all(worker: int) -> list[str]:
        with Store(path) as mine:
            barrier.wait()
            mine_alone = []
            for _ in range(jobs):
                if (job := mine.claim(str(worker))) is not None:
                    mine_alone.append(job.id)
                time.sleep(0.001)  # or the first to begin may be through before the others wake
            return mine_alone

    with ThreadPoolExecutor(threads) as pool:
        claimed = list(pool.map(claim_all, range(threads)))
    assert sum(map(len, claimed)) == jobs
    assert set(itertools.chain(*claimed)) == ids
    assert sum(bool(share) for share in claimed) > 1, "one took all: the test shows nothing"


def test_of_two_ends_of_a_job_one_wins(path: Path, store: Store, make_config: MakeConfig) -> None:
    """A worker finishes while another process cancels: a job is never both, nor neither."""
    outcomes = set()
    for round_ in range(40):
        job = store.submit(make_config())
        store.claim("w")
        barrier = threading.Barrier(2)

        def cancel(job_id: str = job.id, barrier: threading.Barrier = barrier) -> bool:
            with Store(path) as other:
                barrier.wait()
                return other.ask(job_id, Request.CANCEL) is not None

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(cancel)
            barrier.wait()
            for _ in range(round_ % 4):
                store.count(FINISHED)
            finished = store.finish(job.id, "w", State.DONE)
            was_asked = asked.result()
        # Whoever is told that the job will be cancelled is told the truth.
        assert (finished is None) == was_asked
        if was_asked:
            assert store.cancel(job.id, "w") is not None
        assert store.get(job.id).state is (State.CANCELLED if was_asked else State.DONE)
        outcomes.add(was_asked)
    assert outcomes


def test_a_job_that_is_to_be_cancelled_does_not_end_in_another_way(
    store: Store, make_config: MakeConfig
) -> None:
    for state in (State.DONE, State.STOPPED, State.FAILED):
        job = store.submit(make_config())
        store.claim("w")
        store.ask(job.id, Request.CANCEL)
        assert store.finish(job.id, "w", state) is None
        assert store.get(job.id).state is State.STOPPING
        assert store.cancel(job.id, "w") is not None
        assert store.get(job.id).state is State.CANCELLED


def test_the_queue_limit_holds_against_a_crowd(
    path: Path, store: Store, make_config: MakeConfig
) -> None:
    limits, threads = LimitsConfig(max_queued=5), 12
    barrier = threading.Barrier(threads)

    def submit(seed: int) -> bool:
        with Store(path) as mine:
            barrier.wait()
            try:
                mine.submit(make_config(seed=seed), check_waiting=lambda n: check_queue(n, limits))
            except QueueFull:
                return False
            return True

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(submit, range(threads))) == 5
    assert store.count((State.QUEUED,)) == 5


def test_only_its_worker_may_speak_of_a_job(store: Store, make_config: MakeConfig) -> None:
    job = store.submit(make_config())
    assert store.report(job.id, "w", step=1) is None
    store.claim("w")
    assert store.report(job.id, "other", step=1) is None
    assert store.finish(job.id, "other", State.DONE) is None
    assert store.release(job.id, "other") is None
    assert store.cancel(job.id, "other") is None
    assert store.count_failure(job.id, "other", error="e", reason="r") is None
    reported = store.report(job.id, "w", step=3, folder="x")
    assert reported is not None
    assert (reported.step, reported.folder) == (3, "x")
    # The worker was thought dead, and another has the job since: the first comes too late.
    assert store.release(job.id, "w") is not None
    assert store.claim("other") is not None
    assert store.finish(job.id, "w", State.DONE) is None
    assert store.get(job.id).worker == "other"


def test_a_job_ends_once_and_what_is_no_way_is_refused(
    store: Store, make_config: MakeConfig
) -> None:
    job = store.submit(make_config())
    assert store.ask(job.id, Request.STOP) is None
    assert store.ask_queued(job.id) is None
    assert store.requeue(job.id, make_config()) is None
    assert store.delete(job.id) is None
    store.claim("w")
    assert store.cancel_queued(job.id) is None
    stopping = store.ask(job.id, Request.STOP)
    assert stopping is not None
    assert (stopping.state, stopping.request) == (State.STOPPING, Request.STOP)
    cancelling = store.ask(job.id, Request.CANCEL)
    assert cancelling is not None
    assert cancelling.request is Request.CANCEL
    assert store.ask(job.id, Request.STOP) is None
    assert store.cancel(job.id, "w") is not None
    for end in FINISHED:
        assert store.finish(job.id, "w", end) is None
    assert store.get(job.id).state is State.CANCELLED
    assert store.requeue(job.id, make_config()) is None
    with pytest.raises(ValueError, match="not an end"):
        store.finish(job.id, "w", State.RUNNING)
    assert store.delete(job.id) is not None
    with pytest.raises(UnknownJob):
        store.get(job.id)


def test_every_state_has_its_ways() -> None:
    assert set(TRANSITIONS) == set(State)
    assert set(State) == {State.QUEUED} | ACTIVE | FINISHED
    assert not TRANSITIONS[State.CANCELLED]


def test_failures_are_counted_until_the_last(store: Store, make_config: MakeConfig) -> None:
    job = store.submit(make_config(), max_failures=2)
    states = []
    for worker in ("one", "two"):
        store.claim(worker)
        found = store.count_failure(job.id, worker, error="WorkerDied", reason=f"{worker} died")
        assert found is not None
        states.append(found.state)
    assert states == [State.QUEUED, State.FAILED]
    last = store.get(job.id)
    assert (last.failures, last.error, last.reason) == (2, "WorkerDied", "two died")
    # What was to be cancelled is, and not tried again.
    other = store.submit(make_config())
    store.claim("w")
    store.ask(other.id, Request.CANCEL)
    found = store.count_failure(other.id, "w", error="WorkerDied", reason="")
    assert found is not None
    assert found.state is State.CANCELLED


def test_a_released_job_keeps_its_place_and_waits_its_time(
    path: Path, make_config: MakeConfig
) -> None:
    now = [1000.0]
    with Store(path, now=lambda: now[0]) as store:
        first, second = store.submit(make_config()), store.submit(make_config(seed=1))
        store.claim("w")
        store.release(first.id, "w", wait_seconds=2, reason="locked")
        claimed = store.claim("w")
        assert claimed is not None
        assert claimed.id == second.id
        now[0] += 2
        claimed = store.claim("w")
        assert claimed is not None
        assert claimed.id == first.id
        assert claimed.reason is None


@pytest.mark.parametrize("back", [3.0 * 3600, 30.0])
def test_a_clock_that_is_put_back_holds_no_job(
    path: Path, make_config: MakeConfig, back: float
) -> None:
    now = [100_000.0]
    with Store(path, now=lambda: now[0]) as store:
        job = store.submit(make_config())
        store.claim("w")
        store.release(job.id, "w", wait_seconds=2)
        assert store.claim("w") is None
        now[0] -= back
        claimed = store.claim("w")
        if claimed is None:
            now[0] += MOST_WAIT_SECONDS
            claimed = store.claim("w")
        assert claimed is not None
        assert claimed.id == job.id
        # Nobody waits longer than can be told from such a jump.
        store.release(job.id, "w", wait_seconds=1e9)
        assert store.claim("w") is None
        now[0] += MOST_WAIT_SECONDS
        assert store.claim("w") is not None


def test_a_continuation_goes_behind_the_queue_and_its_cancelling_gives_back_what_was(
    store: Store, make_config: MakeConfig
) -> None:
    job = store.submit(make_config())
    store.claim("w")
    store.report(job.id, "w", folder="folder")
    done = store.finish(job.id, "w", State.DONE, step=10)
    waiting = store.submit(make_config(seed=1))
    queued = store.requeue(job.id, make_config(steps=30))
    assert done is not None
    assert queued is not None
    assert queued.turn > waiting.turn
    assert (queued.state, queued.steps, queued.folder) == (State.QUEUED, 30, "folder")
    back = store.cancel_queued(job.id)
    assert back is not None
    assert (back.state, back.steps, back.step, back.folder) == (State.DONE, 10, 10, "folder")
    assert back.options == done.options


@pytest.mark.parametrize("how", ["finish", "count"])
def test_what_was_done_comes_back_from_behind_failed_continuations(
    store: Store, make_config: MakeConfig, how: str
) -> None:
    job = store.submit(make_config(), max_failures=1)
    store.claim("w")
    store.report(job.id, "w", folder="folder")
    done = store.finish(job.id, "w", State.DONE, step=10)
    assert done is not None
    for steps in (30, 50):
        assert store.requeue(job.id, make_config(steps=steps)) is not None
        store.claim("w")
        store.report(job.id, "w", folder=f"folder-{steps}", step=20)
        if how == "finish":
            store.finish(job.id, "w", State.FAILED, error="Timeout", reason="slow")
        else:
            store.count_failure(job.id, "w", error="WorkerDied", reason="died")
        assert store.get(job.id).state is State.FAILED
    assert store.requeue(job.id, make_config(steps=50)) is not None
    back = store.cancel_queued(job.id)
    assert back is not None
    assert (back.state, back.steps, back.step, back.folder) == (State.DONE, 10, 10, "folder")
    assert back.options == done.options
    # And what never was more than failed has nothing to give back.
    other = store.submit(make_config(seed=1))
    store.claim("w")
    store.finish(other.id, "w", State.FAILED, error="e", reason="r")
    store.requeue(other.id, make_config(seed=1))
    ended = store.cancel_queued(other.id)
    assert ended is not None
    assert ended.state is State.CANCELLED


def test_queued_jobs_survive_a_restart(path: Path, make_config: MakeConfig) -> None:
    with Store(path) as store:
        ids = [store.submit(make_config(seed=i)).id for i in range(3)]
    with Store(path) as store:
        assert [job.id for job in reversed(store.jobs())] == ids
        assert [job.options.seed for job in reversed(store.jobs())] == [0, 1, 2]


def test_a_failed_transaction_changes_nothing(store: Store, make_config: MakeConfig) -> None:
    def refuse(_: int) -> None:
        raise QueueFull("full")

    with pytest.raises(QueueFull):
        store.submit(make_config(), check_waiting=refuse)
    assert store.jobs() == []
    store.submit(make_config())


def test_faults_of_the_file_are_named(tmp_path: Path, path: Path, store: Store) -> None:
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="another version"):
        Store(path)
    other = tmp_path / "other"
    other.write_bytes(b"this is no database, however long one looks at it" * 100)
    with pytest.raises(StoreError, match="no job store"):
        Store(other)
    with pytest.raises(OutputError):
        Store(tmp_path / "missing" / "jobs.sqlite3")
