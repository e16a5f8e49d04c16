"""The queue on the disk: one row for each job, and every change of its state one transaction.

A transition names the states it starts from in its own UPDATE, so of two processes that try it
exactly one succeeds; the other is told that it came too late. Whoever reports on a job as its
worker must still be its worker.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection
from typing import Any

from sds3d.config import GenerateConfig
from sds3d.config_json import to_dict
from sds3d.jobs.job import Job, job_of
from sds3d.jobs.states import ACTIVE, CONTINUABLE, FINISHED, TRANSITIONS, Request, State
from sds3d.jobs.store_reader import FIELDS, StoreReader, in_states

MAX_FAILURES = 2
"""A job that ended its worker this often is failed."""
MOST_WAIT_SECONDS = 60.0
"""A job that waits for a time is given to a worker after so long at the latest."""


class Store(StoreReader):
    """The jobs of one folder. Any number of processes of one host may have it open."""

    # --- what a user asks ---------------------------------------------------------------------

    def submit(
        self,
        config: GenerateConfig,
        *,
        check_waiting: Callable[[int], None] = lambda _: None,
        max_failures: int = MAX_FAILURES,
        timeout_seconds: float | None = None,
        pause_at: int | None = None,
    ) -> Job:
        """Queue a new job; `check_waiting` is given the number of those that wait, and may raise.

        The count and the insertion are one transaction, so a limit holds against any crowd.
        """
        job_id, now = secrets.token_urlsafe(9), self._now()
        with self._database.transaction() as connection:
            check_waiting(_count_queued(connection))
            connection.execute(
                "INSERT INTO jobs (id, turn, state, config, created, queued_at, steps, "
                "max_failures, timeout_seconds, pause_at) "
                f"VALUES (?, {_NEXT_TURN}, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    State.QUEUED,
                    json.dumps(to_dict(config)),
                    now,
                    now,
                    config.optimize.all_steps,
                    max_failures,
                    timeout_seconds,
                    pause_at,
                ),
            )
        return self.get(job_id)

    def ask(self, job_id: str, request: Request) -> Job | None:
        """Ask an active job's worker for an end; None where no worker has the job.

        Who asked to stop may still cancel, but not the other way round.
        """
        return self._move(
            job_id,
            ACTIVE,
            State.STOPPING,
            where="(request IS NULL OR request = 'stop')",
            request=request,
        )

    def ask_queued(self, job_id: str) -> Job | None:
        """Ask a job to stop that waits to go on with what it has; None where it does not wait."""
        return self._update(
            "state = 'queued' AND folder IS NOT NULL AND request IS NOT 'cancel' AND id = ?",
            (job_id,),
            request=Request.STOP,
        )

    def cancel_queued(self, job_id: str) -> Job | None:
        """Cancel a job that waits; None where it does not."""
        with self._database.transaction() as connection:
            return self._cancel_in(connection, job_id, {State.QUEUED}, "TRUE", ())

    def requeue(
        self,
        job_id: str,
        config: GenerateConfig,
        *,
        check_waiting: Callable[[int], None] = lambda _: None,
    ) -> Job | None:
        """Queue a finished job again, behind all others; None where it is not to be continued."""
        with self._database.transaction() as connection:
            check_waiting(_count_queued(connection))
            return self._move_in(
                connection,
                job_id,
                CONTINUABLE,
                State.QUEUED,
                raw=f"turn = {_NEXT_TURN}, previous = {_AS_IT_WAS}",
                config=json.dumps(to_dict(config)),
                steps=config.optimize.all_steps,
                request=None,
                queued_at=self._now(),
                started=None,
                finished=None,
                eta_seconds=None,
                failures=0,
                error=None,
                reason=None,
                reused=0,
                not_before=0,
                pause_at=None,
            )

    def delete(self, job_id: str) -> Job | None:
        """Forget a finished job; returns what it was, None where it is not finished."""
        with self._database.transaction() as connection:
            found = connection.execute(
                f"DELETE FROM jobs WHERE id = ? AND {in_states(FINISHED)} RETURNING {FIELDS}",
                (job_id,),
            ).fetchall()
            if found:
                connection.execute("DELETE FROM job_folders WHERE job_id = ?", (job_id,))
        return job_of(found[0]) if found else None

    def forget_folder(self, job_id: str, folder: str) -> None:
        """Say that a job's run folder is no more."""
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM job_folders WHERE job_id = ? AND folder = ?", (job_id, folder)
            )

    # --- what a worker does -------------------------------------------------------------------

    def claim(self, worker: str) -> Job | None:
        """Give the first waiting job to `worker`; None where none waits."""
        now = self._now()
        with self._database.transaction() as connection:
            found = connection.execute(
                f"UPDATE jobs SET state = iif(request IS NULL, '{State.RUNNING}', "
                f"'{State.STOPPING}'), worker = ?, started = ?, finished = NULL, reason = NULL, "
                "error = NULL WHERE id = (SELECT id FROM jobs WHERE state = 'queued' AND "
                # A time that is too far off was set before the clock was put back.
                "(not_before <= ? OR not_before > ?) ORDER BY turn LIMIT 1) AND state = 'queued' "
                f"RETURNING {FIELDS}",
                (worker, now, now, now + MOST_WAIT_SECONDS),
            ).fetchall()
        return job_of(found[0]) if found else None

    def report(self, job_id: str, worker: str, **values: Any) -> Job | None:
        """Set a job's folder, step, config, ... as its worker; None where it no longer is."""
        where = f"id = ? AND worker = ? AND {in_states(ACTIVE)}"
        return self._update(where, (job_id, worker), **values)

    def finish(self, job_id: str, worker: str, state: State, **values: Any) -> Job | None:
        """Put an active job into a finished state as its worker.

        None where it no longer is, and where the job is to be cancelled: `cancel` ends it then.
        """
        if state not in FINISHED:
            raise ValueError(f"{state} is not an end")
        return self._move(
            job_id,
            ACTIVE,
            state,
            where="worker = ? AND request IS NOT 'cancel'",
            given=(worker,),
            **{
                "worker": None,
                "finished": self._now(),
                "eta_seconds": None,
                # A failed continuation may be continued and taken back as well.
                **({} if state is State.FAILED else {"previous": None}),
                **values,
            },
        )

    def cancel(
        self,
        job_id: str,
        worker: str,
        *,
        folder: str | None = None,
        made: tuple[State, int] | None = None,
    ) -> Job | None:
        """Cancel an active job as its worker; None where it no longer is.

        `made` says that its run in `folder` came to that state and step before it could be
        cancelled. A continuation there has taken the place of what the job was before, and nothing
        can be taken back: then it is what its folder holds.
        """
        given = (worker,)
        with self._database.transaction() as connection:
            return self._cancel_in(
                connection, job_id, ACTIVE, "worker = ?", given, folder=folder, made=made
            )

    def release(
        self, job_id: str, worker: str, *, wait_seconds: float = 0, reason: str | None = None
    ) -> Job | None:
        """Put an active job back to its old place in the queue as its worker, or instead of it.

        No worker is given it for `wait_seconds`, and no longer though the clock be put back.
        """
        return self._move(
            job_id,
            ACTIVE,
            State.QUEUED,
            where="worker = ?",
            given=(worker,),
            worker=None,
            reason=reason,
            eta_seconds=None,
            not_before=self._now() + min(wait_seconds, MOST_WAIT_SECONDS),
        )

    def degrade(
        self,
        job_id: str,
        worker: str,
        config: GenerateConfig,
        degraded: str,
        *,
        folder: str | None = None,
    ) -> Job | None:
        """Let an active job ask for less, as its worker: its run is another one from now on.

        It is in `folder` where that has the steps that were made; otherwise they are made anew.
        """
        values: dict[str, Any] = {"folder": folder} if folder else {"folder": None, "step": 0}
        text = json.dumps(to_dict(config))
        return self.report(job_id, worker, config=text, degraded=degraded, **values)

    def count_failure(self, job_id: str, worker: str, *, error: str, reason: str) -> Job | None:
        """Queue a job again whose worker could not go on, or fail it where that was the last time.

        One that was to be cancelled is. Returns the job, None where it is not this worker's.
        """
        now = self._now()
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT request = 'cancel', failures + 1 >= max_failures FROM jobs "
                f"WHERE id = ? AND worker = ? AND {in_states(ACTIVE)}",
                (job_id, worker),
            ).fetchall()
            if not found:
                return None
            to_cancel, is_last = found[0]
            if to_cancel:
                return self._cancel_in(connection, job_id, ACTIVE, "TRUE", ())
            return self._move_in(
                connection,
                job_id,
                ACTIVE,
                State.FAILED if is_last else State.QUEUED,
                raw="failures = failures + 1",
                worker=None,
                error=error,
                reason=reason,
                eta_seconds=None,
                finished=now if is_last else None,
            )

    def beat(self, worker: str, pid: int, doing: str) -> None:
        """Say that a worker lives, and what it is doing."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO workers (name, pid, doing, heartbeat) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET pid = excluded.pid, doing = excluded.doing, "
                "heartbeat = excluded.heartbeat",
                (worker, pid, doing, self._now()),
            )

    def check_writable(self) -> None:
        """Raise OutputError or StoreError where nobody could write here now."""
        with self._database.transaction() as connection:
            # A row that comes and goes: as much room as a heartbeat takes.
            connection.execute("INSERT INTO workers VALUES ('', 0, '', 0)")
            connection.execute("DELETE FROM workers WHERE name = ''")

    def forget_worker(self, worker: str) -> None:
        """Remove a worker that has ended."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM workers WHERE name = ?", (worker,))

    # ------------------------------------------------------------------------------------------

    def _move(
        self,
        job_id: str,
        before: Collection[State],
        after: State,
        *,
        where: str = "TRUE",
        given: tuple[object, ...] = (),
        **values: Any,
    ) -> Job | None:
        with self._database.transaction() as connection:
            return self._move_in(
                connection, job_id, before, after, where=where, given=given, **values
            )

    @staticmethod
    def _move_in(
        connection: Any,
        job_id: str,
        before: Collection[State],
        after: State,
        *,
        where: str = "TRUE",
        given: tuple[object, ...] = (),
        raw: str = "",
        **values: Any,
    ) -> Job | None:
        """One guarded change of state; None where the job is in none of the states `before`."""
        if any(after not in TRANSITIONS[state] for state in before):
            raise ValueError(f"no way leads from each of {sorted(before)} to {after}")
        columns = {"state": after, **values}
        sets = ", ".join([*(f"{name} = ?" for name in columns), *([raw] if raw else [])])
        found = connection.execute(
            f"UPDATE jobs SET {sets} WHERE id = ? AND {in_states(before)} AND {where} "
            f"RETURNING {FIELDS}",
            (*columns.values(), job_id, *given),
        ).fetchall()
        return _recorded(connection, found)

    def _cancel_in(
        self,
        connection: Any,
        job_id: str,
        before: Collection[State],
        where: str,
        given: tuple[object, ...],
        *,
        folder: str | None = None,
        made: tuple[State, int] | None = None,
    ) -> Job | None:
        """Cancelled, or as it was before it was continued, or as its folder is by now."""
        found = connection.execute(
            f"SELECT previous FROM jobs WHERE id = ? AND {in_states(before)} AND {where}",
            (job_id, *given),
        ).fetchall()
        if not found:
            return None
        previous = json.loads(found[0]["previous"] or "{}")
        state = State(previous.pop("state", State.CANCELLED))
        if made is not None and folder is not None and previous.get("folder") == folder:
            state, previous["step"] = made
        if "config" in previous:
            previous["config"] = json.dumps(previous["config"])
        ended = {"worker": None, "finished": self._now(), "eta_seconds": None, "previous": None}
        ended |= {"error": None, "reason": None, "request": Request.CANCEL}
        return self._move_in(
            connection, job_id, before, state, where=where, given=given, **ended, **previous
        )

    def _update(self, where: str, given: tuple[object, ...], **values: Any) -> Job | None:
        sets = ", ".join(f"{name} = ?" for name in values)
        with self._database.transaction() as connection:
            found = connection.execute(
                f"UPDATE jobs SET {sets} WHERE {where} RETURNING {FIELDS}",
                (*values.values(), *given),
            ).fetchall()
            return _recorded(connection, found)


_NEXT_TURN = "(SELECT coalesce(max(turn), 0) + 1 FROM jobs)"
_AS_IT_WAS = (
    "iif(state = 'failed', previous, json_object('state', state, 'config', json(config), "
    "'folder', folder, 'step', step, 'steps', steps))"
)


def _recorded(connection: Any, found: list[Any]) -> Job | None:
    """The job that was changed, its run folder noted among those it has had."""
    if not found:
        return None
    job = job_of(found[0])
    if job.folder is not None:
        connection.execute("INSERT OR IGNORE INTO job_folders VALUES (?, ?)", (job.id, job.folder))
    return job


def _count_queued(connection: Any) -> int:
    return connection.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
