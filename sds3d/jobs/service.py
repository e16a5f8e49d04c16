"""What an interface does with jobs: the only door to them. Computes nothing, imports no torch."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sds3d.atomic import make_writable_folder
from sds3d.config import GenerateConfig
from sds3d.errors import ConfigError
from sds3d.jobs.errors import WrongState
from sds3d.jobs.folders import discard_begun, discard_unshared
from sds3d.jobs.job import Job
from sds3d.jobs.journal import Followed, follow
from sds3d.jobs.limits import LimitsConfig, check_config, check_disk, check_queue
from sds3d.jobs.previews import PICTURE
from sds3d.jobs.states import CONTINUABLE, FINISHED, Request, State
from sds3d.jobs.store import MAX_FAILURES, Store
from sds3d.refine import check_refine_teacher
from sds3d.runs import RunFolder
from sds3d.teachers import teacher_folder

STORE_NAME = "jobs.sqlite3"


class JobService:
    """The jobs of the folder `out`: their store lies in it, and each job's run folder.

    Any number of processes may have one for the same folder. Every method may raise UnknownJob,
    StoreError and, where it writes, OutputError.
    """

    def __init__(
        self, out: Path, *, limits: LimitsConfig | None = None, store_path: Path | None = None
    ) -> None:
        # Even on a disk that is nearly full: to delete runs is the remedy.
        make_writable_folder(out, min_free_bytes=0)
        self.out = out
        self.limits = limits or LimitsConfig()
        self.store = Store(store_path or out / STORE_NAME)

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> JobService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- asking -------------------------------------------------------------------------------

    def submit(
        self,
        config: GenerateConfig,
        *,
        max_failures: int = MAX_FAILURES,
        timeout_seconds: float | None = None,
        pause_at: int | None = None,
    ) -> Job:
        """Queue a run. Its folder will be below `out`, whatever the config says.

        With `pause_at` it is stopped after that step of its plan, before a mesh is made, and goes
        on when it is continued. Raises LimitExceeded, QueueFull, DiskLow, ConfigError for a pause
        that is not within the plan, and TeacherError for a teacher that is not here,
        for none is fetched.
        """
        config = dataclasses.replace(config, out=self.out)
        check_config(config, self.limits)
        if pause_at is not None and not 0 < pause_at < config.optimize.total_steps:
            raise ConfigError(
                f"a pause after step {pause_at} is not within --steps "
                f"{config.optimize.total_steps}: choose fewer steps before the pause"
            )
        # Whoever asks waits for the answer, and a download takes minutes.
        teacher_folder(config.teacher, fetch=False)
        check_refine_teacher(config, fetch=False)
        check_disk(self.out, self.limits)
        return self.store.submit(
            config,
            check_waiting=lambda waiting: check_queue(waiting, self.limits),
            max_failures=max_failures,
            timeout_seconds=timeout_seconds,
            pause_at=pause_at,
        )

    def stop(self, job_id: str) -> Job:
        """End a run within a step; its mesh is made from what there is, and it can be continued.

        One that has not begun has nothing to keep and is cancelled. Raises WrongState where it is
        finished.
        """
        # It may change hands between the tries, and only then is there a next one.
        for _ in range(3):
            job = (
                self.store.ask(job_id, Request.STOP)
                or self.store.ask_queued(job_id)
                or self.store.cancel_queued(job_id)
            )
            if job is not None:
                return job
            if (now := self.get(job_id)).state in FINISHED or now.request is Request.CANCEL:
                break
        raise self._wrong(job_id, "stopped")

    def cancel(self, job_id: str) -> Job:
        """End a run within a step and remove what it made; a continuation is taken back instead.

        Raises WrongState where it is finished.
        """
        for _ in range(3):
            before = self.get(job_id)
            job = self.store.cancel_queued(job_id)
            if job is not None:
                self._discard(job, before)
                return job
            job = self.store.ask(job_id, Request.CANCEL)
            if job is not None:
                return job
            if (now := self.get(job_id)).state in FINISHED:
                break
            if now.request is Request.CANCEL and now.state is not State.QUEUED:
                return now
        raise self._wrong(job_id, "cancelled")

    def continue_(self, job_id: str, extra_steps: int = 0) -> Job:
        """Queue a finished job again: a stopped or failed one goes on to its planned last step.

        `extra_steps` are added to the plan; one that is done needs some. Raises WrongState for
        jobs that are not finished or were cancelled, LimitExceeded, QueueFull, and ConfigError for
        what is no number of steps.
        """
        if type(extra_steps) is not int or extra_steps < 0:
            # Not only out of range: a number of another type would be stored, and never read again.
            raise ConfigError(
                f"extra_steps is {reprlib.repr(extra_steps)}: give a whole number of at least 0"
            )
        job = self.get(job_id)
        if job.state not in CONTINUABLE:
            raise self._wrong(job_id, "continued")
        if job.state is State.DONE and extra_steps < 1:
            raise WrongState(f"job {job_id} made all its steps: say how many more it shall make")
        options = job.options.optimize
        longer = dataclasses.replace(options, extra_steps=options.extra_steps + extra_steps)
        config = dataclasses.replace(job.options, optimize=longer)
        check_config(config, self.limits)
        check_disk(self.out, self.limits)
        queued = self.store.requeue(
            job_id, config, check_waiting=lambda waiting: check_queue(waiting, self.limits)
        )
        if queued is None:
            raise self._wrong(job_id, "continued")
        return queued

    def delete(self, job_id: str) -> None:
        """Forget a finished job and remove its folders, except those that another job has too.

        Raises WrongState where it is not finished.
        """
        folders = self.store.folders_of(job_id)
        if self.store.delete(job_id) is None:
            raise self._wrong(job_id, "deleted")
        for folder in folders:
            discard_unshared(self.store, self.out, job_id, folder, keep_finished=False)

    # --- looking ------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def jobs(
        self,
        states: Collection[State] = tuple(State),
        *,
        search: str = "",
        limit: int = -1,
        offset: int = 0,
    ) -> list[Job]:
        """The jobs in these states whose prompt holds `search`, the latest first."""
        return self.store.jobs(states, search=search, limit=limit, offset=offset)

    def place_in_queue(self, job: Job) -> int:
        """How many jobs are worked on or wait before this one."""
        return self.store.ahead_of(job) + self.store.count((State.RUNNING, State.STOPPING))

    def folder(self, job: Job) -> Path | None:
        """The run folder; None until a worker has made it."""
        path = None if job.folder is None else self.out / job.folder
        return path if path is not None and path.is_dir() else None

    def follow(self, job: Job, offset: int = 0) -> Followed:
        """The job's events after `offset`, and the offset to ask with next."""
        folder = self.folder(job)
        if folder is None:
            return Followed(events=[], offset=0, damaged=0)
        return follow(folder, offset)

    def picture(self, job: Job) -> Path | None:
        """The latest picture of the growing object; None where there is none yet."""
        folder = self.folder(job)
        path = None if folder is None else folder / PICTURE
        return path if path is not None and path.is_file() else None

    def result(self, job: Job) -> dict[str, Any] | None:
        """The content of result.json: of a done job, or what a stopped one came to.

        Raises RunError where its folder is damaged or another version made it.
        """
        folder = self.folder(job)
        if folder is None or job.state not in FINISHED:
            return None
        return RunFolder.open(folder).result()

    def file(self, job: Job, name: str) -> Path | None:
        """A file that the job's result names, and nothing else of the disk."""
        result = self.result(job)
        folder = self.folder(job)
        if result is None or folder is None or name not in result["files"]:
            return None
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None

    # ------------------------------------------------------------------------------------------

    def _discard(self, job: Job, before: Job) -> None:
        """Remove what a cancelled job had begun, and nothing that is finished or another's."""
        discard_begun(self.store, self.out, job, before.folder)

    def _wrong(self, job_id: str, wish: str) -> WrongState:
        return WrongState(f"job {job_id} is {self.get(job_id).state} and cannot be {wish}")
