"""Processes that are killed: nothing is lost, and what kills its worker twice is failed."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.generate import generate
from sds3d.jobs.errors import StoreInUse
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService
from sds3d.jobs.states import FINISHED, State
from sds3d.jobs.store import Store
from sds3d.jobs.supervisor import Supervisor

MakeConfig = Callable[..., GenerateConfig]


def _tend_until(supervisor: Supervisor, condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, supervisor.log.read_text()
        assert supervisor.trouble is None
        supervisor.tend()
        time.sleep(0.02)


def _mesh(service: JobService, job_id: str) -> str:
    result = service.result(service.get(job_id))
    assert result is not None
    return result["files"]["mesh.glb"]


def test_killed_workers_are_replaced_and_the_deadly_job_is_failed_and_the_rest_done(
    service: JobService,
    make_config: MakeConfig,
    worker_command: Path,
    fakes: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEP_SECONDS", "0.05")
    config = make_config(steps=40)
    killed = service.submit(config)
    deadly = service.submit(make_config("a deadly mushroom"))
    last = service.submit(make_config("a blue mushroom"))
    command = (sys.executable, str(worker_command))
    with Supervisor(service.store, service.out, command=command) as supervisor:
        supervisor.start()
        with pytest.raises(StoreInUse, match="already runs"):
            Supervisor(service.store, service.out, command=command).start()
        _tend_until(supervisor, lambda: _has_checkpoint(service, killed.id))
        (pid,) = supervisor.pids()
        os.kill(pid, signal.SIGKILL)
        _tend_until(supervisor, lambda: service.get(killed.id).failures == 1)
        queued = service.get(killed.id)
        assert queued.state in (State.QUEUED, State.RUNNING)
        # At its old place: before the two that wait.
        assert queued.turn == killed.turn
        _tend_until(supervisor, lambda: service.store.count(FINISHED) == 3)
    assert service.get(killed.id).state is State.DONE
    assert "SIGKILL" in str(service.get(deadly.id).reason)
    failed = service.get(deadly.id)
    assert (failed.state, failed.error, failed.failures) == (State.FAILED, "WorkerDied", 2)
    assert "time 2 of 2" in str(failed.reason)
    assert service.get(last.id).state is State.DONE
    # The killed run went on from its checkpoint and ends with the bits of an unbroken one.
    events = service.follow(service.get(killed.id)).events
    steps = [event["step"] for event in events if event["event"] == "step"]
    begins = [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
    assert len(begins) <= 1
    assert 1 not in steps[1:]
    whole = generate(
        GenerateConfig(
            prompt=config.prompt, device="cpu", out=tmp_path / "w", optimize=config.optimize
        ),
        parts=fakes.make_parts(),
    )
    assert _mesh(service, killed.id) == whole.result["files"]["mesh.glb"]


def test_a_worker_that_hangs_past_its_jobs_time_is_ended_and_the_job_goes_on_with_another(
    service: JobService, make_config: MakeConfig, worker_command: Path, monkeypatch: Any
) -> None:
    """It beats: only the clock tells."""
    monkeypatch.setattr("sds3d.jobs.supervisor.OVERTIME_SECONDS", 0.2)
    job = service.submit(make_config("a hanging mushroom"), timeout_seconds=0.5)
    command = (sys.executable, str(worker_command))
    with Supervisor(service.store, service.out, command=command) as supervisor:
        supervisor.start()
        _tend_until(supervisor, lambda: service.get(job.id).failures == 1)
        hung = service.get(job.id)
        assert (hung.state, hung.error) == (State.QUEUED, "Timeout")
        assert "longer than 0.5 s and hung" in str(hung.reason)
        assert "time 1 of 2" in str(hung.reason)
        _tend_until(supervisor, lambda: service.get(job.id).state is State.DONE)
    assert service.get(job.id).failures == 1


def test_a_clock_that_is_set_or_a_sleep_of_the_machine_ends_no_worker(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """The row's times are the wall's, hours off; what counts is how long the supervisor saw it."""
    passed, wall = [0.0], [1e9]
    idle = (sys.executable, "-c", "import time; time.sleep(600)")
    with Store(tmp_path / "jobs.sqlite3", now=lambda: wall[0]) as store:
        job = store.submit(make_config(), timeout_seconds=10.0)
        with Supervisor(
            store, tmp_path, command=idle, now=lambda: passed[0], stale_seconds=1e9
        ) as supervisor:
            supervisor.start()
            (name,) = (slot.name for slot in supervisor._slots)
            (pid,) = supervisor.pids()
            store.beat(name, pid, job.id)
            store.claim(name)
            supervisor.tend()
            for jump in (7200.0, -90000.0):
                wall[0] += jump
                passed[0] += 15.0
                supervisor.tend()
                assert supervisor.pids() == [pid]
                assert store.get(job.id).state is State.RUNNING
            # Another try has its own time.
            store.release(job.id, name)
            wall[0] += 1.0
            store.claim(name)
            passed[0] += 20.0
            supervisor.tend()
            assert supervisor.pids() == [pid]
            passed[0] += 45.0
            _tend_until(supervisor, lambda: store.get(job.id).failures == 1)
        assert store.get(job.id).error == "Timeout"


def _has_checkpoint(service: JobService, job_id: str) -> bool:
    folder = service.folder(service.get(job_id))
    return folder is not None and any(folder.glob("checkpoint-*.json"))


def test_an_end_of_the_supervisor_gives_the_job_back_and_a_frozen_worker_is_replaced(
    tmp_path: Path, make_config: MakeConfig, worker_command: Path, monkeypatch: Any
) -> None:
    """Frozen with SIGSTOP, it beats no more; the system lets its folder go only with its end."""
    monkeypatch.setenv("STEP_SECONDS", "0.05")
    command = (sys.executable, str(worker_command))
    limits = LimitsConfig(min_free_bytes=0)
    with JobService(tmp_path / "out", limits=limits) as service:
        job = service.submit(make_config(steps=400))
        with Supervisor(
            service.store, service.out, command=command, stale_seconds=3.0
        ) as supervisor:
            supervisor.start()
            _tend_until(supervisor, lambda: service.get(job.id).step > 0)
            os.kill(supervisor.pids()[0], signal.SIGSTOP)
            _tend_until(supervisor, lambda: service.get(job.id).failures == 1)
            assert "no sign of life" in str(service.get(job.id).reason)
            _tend_until(supervisor, lambda: service.get(job.id).state is State.RUNNING)
            before = service.get(job.id).step
            _tend_until(supervisor, lambda: service.get(job.id).step > before)
    with Store(tmp_path / "out" / "jobs.sqlite3") as store:
        released = store.get(job.id)
        assert (released.state, released.worker, released.failures) == (State.QUEUED, None, 1)
        assert store.workers() == []


def test_what_an_earlier_supervisor_left_is_taken_up(
    service: JobService, make_config: MakeConfig
) -> None:
    jobs = [service.submit(make_config(seed=seed)) for seed in range(3)]
    gone, silent, alive = "gone", "silent", "alive"
    for name in (gone, silent, alive):
        service.store.claim(name)
    now = [0.0]
    supervisor = Supervisor(service.store, service.out, workers=0, now=lambda: now[0])
    no_such_pid = 2**22 + 1
    service.store.beat(gone, no_such_pid, "a job")
    service.store.beat(silent, os.getpid(), "a job")
    service.store.beat(alive, os.getpid(), "a job")
    supervisor.tend()
    states = [service.get(job.id).state for job in jobs]
    assert states == [State.QUEUED, State.RUNNING, State.RUNNING]
    for _ in range(4):
        now[0] += 10
        time.sleep(0.002)
        service.store.beat(alive, os.getpid(), "a job")
        supervisor.tend()
    states = [service.get(job.id).state for job in jobs]
    assert states == [State.QUEUED, State.QUEUED, State.RUNNING]
    # It is not the jobs' fault.
    assert [service.get(job.id).failures for job in jobs] == [0, 0, 0]
    # A row that is gone while its worker still has a job is that of a dead worker too.
    service.store.forget_worker(alive)
    supervisor.tend()
    assert service.get(jobs[2].id).state is State.QUEUED


def test_workers_that_never_come_up_are_named_with_their_log(
    service: JobService, make_config: MakeConfig
) -> None:
    service.submit(make_config())
    now = [0.0]
    command = (sys.executable, "-c", "raise SystemExit('no such library')")
    with Supervisor(service.store, service.out, command=command, now=lambda: now[0]) as supervisor:
        supervisor.start()
        deadline = time.monotonic() + 60
        while supervisor.trouble is None:
            assert time.monotonic() < deadline
            now[0] += 5
            supervisor.tend()
            time.sleep(0.02)
        assert "workers.log" in supervisor.trouble
        assert "no such library" in supervisor.log.read_text()
    assert service.store.count((State.QUEUED,)) == 1


def test_a_system_that_refuses_processes_for_a_while_gets_its_workers_later(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: list[float] = [0.0]
    refused: list[float] = []

    def refuse(*_: Any, **__: Any) -> Any:
        refused.append(now[0])
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("sds3d.jobs.supervisor.subprocess.Popen", refuse)
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    with Supervisor(service.store, service.out, command=command, now=lambda: now[0]) as supervisor:
        supervisor.start()
        for _ in range(200):
            now[0] += 0.2
            supervisor.tend()
        assert "temporarily unavailable" in str(supervisor.trouble)
        # Not at every look: less and less often.
        assert 4 <= len(refused) < 10
        monkeypatch.undo()
        assert supervisor.pids() == []
        now[0] += 30
        supervisor.tend()
        assert len(supervisor.pids()) == 1


def test_a_log_that_cannot_be_written_is_named_and_does_not_end_the_supervisor(
    service: JobService,
) -> None:
    now = [0.0]
    supervisor = Supervisor(service.store, service.out, now=lambda: now[0])
    supervisor.log.mkdir()
    for _ in range(4):
        now[0] += 30
        supervisor.tend()
    assert supervisor.pids() == []
    assert "Is a directory" in str(supervisor.trouble)


def test_a_store_that_refuses_for_a_while_does_not_end_the_supervisor(
    service: JobService, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds3d.jobs.database.BUSY_SECONDS", 0.01)
    with Store(service.store.path) as store:
        job = store.submit(make_config())
        store.claim("gone")
        supervisor = Supervisor(store, service.out, workers=0)
        blocker = sqlite3.connect(store.path, isolation_level=None)
        try:
            blocker.execute("BEGIN IMMEDIATE")
            supervisor.tend()
            assert "was locked" in str(supervisor.trouble)
        finally:
            blocker.close()
        supervisor.tend()
        assert supervisor.trouble is None
        assert store.get(job.id).state is State.QUEUED


def test_who_serves_and_supervises_never_loads_what_computes() -> None:
    code = """
import sys
import sds3d.batch.run, sds3d.jobs.service, sds3d.jobs.supervisor, sds3d.jobs.worker
heavy = {"torch", "numba", "trimesh", "diffusers", "transformers", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
