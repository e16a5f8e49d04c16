"""What a worker has to know while it is at a job: whether to end, and why."""

from __future__ import annotations

import time
from collections.abc import Callable

from sds3d.errors import OutputError
from sds3d.events import Event, Step
from sds3d.jobs.errors import UnknownJob
from sds3d.jobs.job import Job
from sds3d.jobs.patience import patiently
from sds3d.jobs.states import ACTIVE, Request
from sds3d.jobs.store import Store

POLL_SECONDS = 0.02
REPORT_SECONDS = 1.0


class Watch:
    """Asks the store between the steps of a job, and tells it how far the job is.

    Attributes:
        request: What the user asked for.
        lost: The job is another worker's now; nothing may be said about it any more.
        timed_out: It took longer than it may.
        paused: It has made the step after which it waits to be continued.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        worker: str,
        must_end: Callable[[], bool],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._job = job
        self._worker = worker
        self._must_end = must_end
        self._now = now
        self._began = self._asked = now()
        self._reported = self._began - REPORT_SECONDS
        self.request = job.request
        self.lost = False
        self.timed_out = False
        self.paused = False

    def must_stop(self) -> bool:
        """Whether to end without a result: cancelled, too slow, lost, or the worker is to end."""
        self._look()
        limit = self._job.timeout_seconds
        if limit is not None and self._now() - self._began > limit:
            self.timed_out = True
        cancelled = self.request is Request.CANCEL
        # Who asks to stop gets the mesh of what there is.
        paused = self.paused and self.request is not Request.STOP
        return cancelled or self.lost or self.timed_out or paused or self._must_end()

    def must_finish(self) -> bool:
        """Whether to export what there is."""
        self._look()
        return self.request is Request.STOP

    def hear(self, event: Event) -> None:
        """Pass a step on to the store, not more often than once a second, if it can be written."""
        if not isinstance(event, Step):
            return
        pause_at = self._job.pause_at
        self.paused = pause_at is not None and pause_at <= event.step < event.steps
        is_last = self.paused or event.step >= event.steps
        if not is_last and self._now() - self._reported < REPORT_SECONDS:
            return
        self._reported = self._now()
        values = {"step": event.step, "steps": event.steps, "eta_seconds": event.eta_seconds}
        # The last one is waited for; before that the next second's says all that this one would.
        give_up = self._must_end if is_last else _at_once
        try:
            row = patiently(give_up, self._store.report, self._job.id, self._worker, **values)
        except OutputError:
            return
        self.lost = self.lost or row is None

    def _look(self) -> None:
        if self._now() - self._asked < POLL_SECONDS:
            return
        self._asked = self._now()
        try:
            job = self._store.get(self._job.id)
        except UnknownJob:
            self.lost = True
            return
        self.request = job.request
        self.lost = job.worker != self._worker or job.state not in ACTIVE


def _at_once() -> bool:
    return True
