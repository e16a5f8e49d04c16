"""A job as the store holds it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from sds3d.config import GenerateConfig
from sds3d.config_json import from_dict
from sds3d.jobs.states import Request, State


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the store. Times are seconds since the epoch.

    Attributes:
        id: Names the job in addresses; cannot be guessed.
        turn: Its place in the queue.
        state, request: Where it is, and what its user asked of it since it was queued last.
        config: The options, as `sds3d.config_json.to_dict` gives them.
        folder: Name of its run folder below the store's; None until a worker knows it.
        worker: Which worker has it.
        created, queued_at, started, finished: When; the last two None before that.
        step, steps, eta_seconds: How far it is.
        failures: How often it ended its worker, or failed in a way that a second try may mend.
        max_failures: At which of these it is failed for good.
        timeout_seconds: The longest that a worker may be at it, None for no end.
        error, reason: Why it failed or waits: a short name, and a sentence for its user.
        reused: Whether its run was found finished and nothing was computed.
        degraded: What was made smaller because memory did not suffice, in words.
        pause_at: The step after which it is stopped without a mesh, to be continued; None for none.
    """

    id: str
    turn: int
    state: State
    request: Request | None
    config: dict[str, Any]
    folder: str | None
    worker: str | None
    created: float
    queued_at: float
    started: float | None
    finished: float | None
    step: int
    steps: int
    eta_seconds: float | None
    failures: int
    max_failures: int
    timeout_seconds: float | None
    error: str | None
    reason: str | None
    reused: bool
    degraded: str | None
    pause_at: int | None

    @property
    def prompt(self) -> str:
        return str(self.config["prompt"])

    @property
    def options(self) -> GenerateConfig:
        """The options of the run. Raises ConfigError where another version wrote them."""
        return from_dict(self.config)

    @property
    def seconds(self) -> float | None:
        """How long it was worked on, last time; None while it is or was not."""
        if self.started is None or self.finished is None:
            return None
        return max(0.0, self.finished - self.started)


COLUMNS = tuple(f.name for f in dataclasses.fields(Job))


def job_of(row: sqlite3.Row) -> Job:
    """The job that a row with the `COLUMNS` says."""
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    values["state"] = State(values["state"])
    values["request"] = Request(values["request"]) if values["request"] else None
    values["config"] = json.loads(values["config"])
    values["reused"] = bool(values["reused"])
    return Job(**values)
