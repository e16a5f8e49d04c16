"""What anybody may read of the queue on the disk; `sds3d.jobs.store` changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sds3d.jobs.database import Database
from sds3d.jobs.errors import UnknownJob
from sds3d.jobs.job import COLUMNS, Job, job_of
from sds3d.jobs.states import ACTIVE, State

FIELDS = ", ".join(COLUMNS)
"""Of a row, what `job_of` wants."""


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker as it last reported: what it is doing, and when (seconds since the epoch)."""

    name: str
    pid: int
    doing: str
    heartbeat: float


class StoreReader:
    """The jobs of one folder, their folders and their workers, to be looked at."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self._database = Database(path)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, job_id: str) -> Job:
        """The job of that id. Raises UnknownJob."""
        found = self._database.rows(f"SELECT {FIELDS} FROM jobs WHERE id = ?", job_id)
        if not found:
            raise UnknownJob(job_id)
        return job_of(found[0])

    def jobs(
        self,
        states: Collection[State] = tuple(State),
        *,
        search: str = "",
        limit: int = -1,
        offset: int = 0,
    ) -> list[Job]:
        """The jobs in these states whose prompt holds `search`, the latest first."""
        rows = self._database.rows(
            f"SELECT {FIELDS} FROM jobs WHERE {in_states(states)} AND "
            "instr(lower(json_extract(config, '$.prompt')), lower(?)) > 0 "
            "ORDER BY created DESC, turn DESC LIMIT ? OFFSET ?",
            search,
            limit,
            offset,
        )
        return [job_of(row) for row in rows]

    def count(self, states: Collection[State]) -> int:
        """How many jobs are in these states."""
        return self._database.rows(f"SELECT count(*) FROM jobs WHERE {in_states(states)}")[0][0]

    def ahead_of(self, job: Job) -> int:
        """How many jobs wait before this one."""
        return self._database.rows(
            "SELECT count(*) FROM jobs WHERE state = 'queued' AND turn < ?", job.turn
        )[0][0]

    def folders_of(self, job_id: str) -> list[str]:
        """Every run folder that a job has had: continued or with less memory, it has others."""
        rows = self._database.rows(
            "SELECT folder FROM job_folders WHERE job_id = ? ORDER BY folder", job_id
        )
        return [row["folder"] for row in rows]

    def others_with_folder(self, job_id: str, folder: str) -> int:
        """How many other jobs have or had the same run folder."""
        return self._database.rows(
            "SELECT count(*) FROM job_folders WHERE folder = ? AND job_id != ?", folder, job_id
        )[0][0]

    def active_of(self, worker: str) -> Job | None:
        """The job that a worker has."""
        found = self._database.rows(
            f"SELECT {FIELDS} FROM jobs WHERE worker = ? AND {in_states(ACTIVE)}", worker
        )
        return job_of(found[0]) if found else None

    def workers(self) -> list[WorkerRow]:
        """Every worker that has not said that it ended."""
        rows = self._database.rows("SELECT name, pid, doing, heartbeat FROM workers ORDER BY name")
        return [WorkerRow(**dict(row)) for row in rows]


def in_states(states: Collection[State]) -> str:
    """The condition that a job is in one of these states."""
    return f"state IN ({', '.join(repr(str(state)) for state in sorted(states))})"
