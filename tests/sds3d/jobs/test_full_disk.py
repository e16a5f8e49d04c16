"""A disk that fills in the midst of a run: the job waits for room and goes on, within bounds."""

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.errors import output_error
from sds3d.jobs.errors import DiskLow
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State

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
