"""The states of a job and the ways between them.

    queued ---> running ---> done
      |  ^         |  `----> stopped, failed
      |  |         v
      |  `----- stopping --> done, stopped, cancelled, failed
      v
    cancelled

A running job whose worker died or was told to end is queued again and goes on from its checkpoint;
so is a stopped, failed or done one that is continued. To cancel a continuation gives back what was
there before it, and before those before it that failed: the job is stopped or done as it was. One
that never was either is cancelled.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Request(StrEnum):
    """What its user asked of a job that is not finished."""

    STOP = "stop"
    """End it within a step and export what there is."""
    CANCEL = "cancel"
    """End it within a step and remove what there is."""


ACTIVE = frozenset({State.RUNNING, State.STOPPING})
"""A worker has the job."""

FINISHED = frozenset({State.DONE, State.STOPPED, State.CANCELLED, State.FAILED})
"""Nothing happens to the job any more unless it is asked for."""

CONTINUABLE = frozenset({State.DONE, State.STOPPED, State.FAILED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset(
        {State.RUNNING, State.STOPPING, State.CANCELLED, State.STOPPED, State.DONE}
    ),
    State.RUNNING: frozenset(
        {State.STOPPING, State.DONE, State.STOPPED, State.CANCELLED, State.FAILED, State.QUEUED}
    ),
    State.STOPPING: frozenset(
        {State.STOPPING, State.DONE, State.STOPPED, State.CANCELLED, State.FAILED, State.QUEUED}
    ),
    State.DONE: frozenset({State.QUEUED}),
    State.STOPPED: frozenset({State.QUEUED}),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset(),
}
"""From each state the states that a job may go to in one transaction."""
