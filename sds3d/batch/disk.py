"""How long a batch waits for a disk that has no room: not for ever, and not in silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from sds3d.events import Listener, Warning
from sds3d.jobs.errors import DiskLow
from sds3d.jobs.job import Job

DISK_PATIENCE_SECONDS = 600.0
"""With no room and nothing at work for so long, a batch ends."""
AT_WORK_SECONDS = 5.0
"""An item that a worker has had for so long is worked on: what has no room goes back at once."""


class DiskWatch:
    """Asks `check`, which raises DiskLow, now and then; tells `on_event` once of each shortage."""

    def __init__(
        self,
        check: Callable[[], None],
        on_event: Listener,
        *,
        patience_seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._on_event = on_event
        self._patience_seconds = (
            DISK_PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        )
        self._now = now
        self._idle_since: float | None = None
        self._told = False
        self._claims: dict[tuple[str, float | None], float] = {}

    def hopeless(self, waiting: int, active: Callable[[], Collection[Job]]) -> DiskLow | None:
        """The shortage that has kept the `waiting` items, and every worker, for too long."""
        try:
            self._check()
        except DiskLow as error:
            return self._low(error, active()) if waiting else None
        self._idle_since, self._told, self._claims = None, False, {}
        return None

    def _low(self, error: DiskLow, active: Collection[Job]) -> DiskLow | None:
        now = self._now()
        claims = {(job.id, job.started) for job in active}
        self._claims = {claim: self._claims.get(claim, now) for claim in claims}
        works = any(now - since >= AT_WORK_SECONDS for since in self._claims.values())
        if self._idle_since is None or works:
            self._idle_since = now
        if not self._told:
            self._told = True
            self._on_event(
                Warning(
                    f"the batch waits for disk space: {error.shortage}; delete something, and it "
                    f"goes on by itself; it ends after {self._patience_seconds / 60:g} minutes in "
                    "which nothing could be made"
                )
            )
        return error if now - self._idle_since >= self._patience_seconds else None
