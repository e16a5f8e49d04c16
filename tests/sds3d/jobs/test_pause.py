"""A job that waits after some of its steps: no mesh is made before it goes on."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.errors import ConfigError
from sds3d.generate import generate
from sds3d.jobs.database import SCHEMA_VERSION
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State
from sds3d.jobs.store import Store
from sds3d.jobs.worker import Worker

MakeConfig = Callable[..., GenerateConfig]
MakeWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def _ask_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps here take no time: the watch must not wait between two looks."""
    monkeypatch.setattr("sds3d.jobs.watch.POLL_SECONDS", 0.0)


def test_a_paused_job_goes_on_to_the_bits_of_one_without_a_pause(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    tmp_path: Path,
) -> None:
    made: list[str] = []

    def write_files(*given: Any) -> Any:
        made.append("mesh")
        return fakes.write_files(*given)

    job = service.submit(make_config(), pause_at=4)
    worker = make_worker(write_files=write_files)
    worker.run(until_idle=True)
    paused = service.get(job.id)
    assert (paused.state, paused.step, paused.steps) == (State.STOPPED, 4, 10)
    assert (paused.error, paused.reason, paused.worker) == (None, None, None)
    assert service.result(paused) is None
    assert made == []
    assert service.continue_(job.id).pause_at is None
    worker.run(until_idle=True)
    done = service.get(job.id)
    assert (done.state, done.step) == (State.DONE, 10)
    assert made == ["mesh"]
    result = service.result(done)
    assert result is not None
    straight = generate(make_config(out=tmp_path / "straight"), parts=fakes.make_parts())
    for name in ("mesh.glb", "mesh.obj", "preview.png"):
        assert result["files"][name] == straight.result["files"][name]


def test_who_stops_a_job_before_its_pause_gets_a_mesh(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    job = service.submit(make_config(), pause_at=4)

    class StoppedAtThePause(fakes.Loop):
        def __call__(self, *given: Any, on_event: Any, **how: Any) -> Any:
            def listen(event: Any) -> None:
                on_event(event)
                if event.step == 4:
                    service.stop(job.id)

            return super().__call__(*given, on_event=listen, **how)

    make_worker(loop=StoppedAtThePause()).run(until_idle=True)
    stopped = service.get(job.id)
    assert (stopped.state, stopped.step) == (State.STOPPED, 4)
    assert service.result(stopped) is not None


@pytest.mark.parametrize("step", [0, -3, 10, 11])
def test_a_pause_outside_the_plan_is_refused(
    service: JobService, make_config: MakeConfig, step: int
) -> None:
    with pytest.raises(ConfigError, match="--steps 10"):
        service.submit(make_config(), pause_at=step)
    assert service.jobs() == []


def test_a_queue_of_the_version_before_is_taken_over(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    path = tmp_path / "jobs.sqlite3"
    with Store(path) as store:
        job = store.submit(make_config())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE jobs DROP COLUMN pause_at")
        connection.execute("PRAGMA user_version = 1")
    with Store(path) as store:
        assert store.get(job.id) == job
        later = store.submit(make_config(), pause_at=3)
        assert store.get(later.id).pause_at == 3
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_the_folders_of_a_queue_of_the_version_before_are_known(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    path = tmp_path / "jobs.sqlite3"
    with Store(path) as store:
        job, waiting = store.submit(make_config()), store.submit(make_config(seed=1))
        store.claim("w")
        store.report(job.id, "w", folder="first")
        store.finish(job.id, "w", State.DONE)
        store.requeue(job.id, make_config(steps=20))
        store.release(waiting.id, "w")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE jobs SET folder = 'second' WHERE folder IS NOT NULL")
        connection.execute("DROP TABLE job_folders")
        connection.execute("PRAGMA user_version = 2")
    with Store(path) as store:
        assert store.folders_of(job.id) == ["first", "second"]
        assert store.folders_of(waiting.id) == []
        assert store.others_with_folder(waiting.id, "first") == 1
