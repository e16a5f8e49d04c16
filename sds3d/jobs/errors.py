"""What can be wrong with a job, each with a sentence that says what to do."""

from __future__ import annotations

from sds3d.errors import BadInput, Sds3dError


class JobError(BadInput):
    """What was asked of a job cannot be done."""


class UnknownJob(JobError):
    """There is no job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id[:40]!r}: it was deleted, or the id is mistyped")


class WrongState(JobError):
    """A job is not in a state in which this can be asked of it."""


class LimitExceeded(JobError):
    """The request is larger than this place allows. The text names the option and the limit."""


class QueueFull(LimitExceeded):
    """As many jobs are waiting as may wait."""


class DiskLow(LimitExceeded):
    """Too little space is left for another run; `shortage` says how little, and no remedy."""

    def __init__(self, free_bytes: int, needed_bytes: int) -> None:
        self.shortage = (
            f"only {free_bytes / 2**20:.0f} MiB are free for runs and "
            f"{needed_bytes / 2**20:.0f} MiB are needed"
        )
        super().__init__(f"{self.shortage}: delete some runs, then try again")


class StoreError(Sds3dError):
    """The job store cannot be read or written."""


class StoreInUse(StoreError):
    """Another process already starts the workers of this store."""


class WorkersFail(Sds3dError):
    """Worker processes end again and again before they take a job."""
