"""A job's events as JSON lines in its run folder, written by its worker and followed by anybody.

`progress.jsonl` holds every event, steps at most `STEPS_PER_SECOND` of them, each line with the
time ("time", seconds since the epoch). After a restart the steps since the last checkpoint come
twice; the later line counts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sds3d.errors import output_error
from sds3d.events import Event, Step

JOURNAL = "progress.jsonl"
STEPS_PER_SECOND = 5
MOST_BYTES = 4 * 2**20
"""Read at once; whoever follows a longer file asks again."""


class Journal:
    """Appends events to the journal of a run folder."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self.path = folder / JOURNAL
        self._now = now
        self._last_step = 0.0

    def begin(self) -> None:
        """Make ready to append: a torn last line, left by a killed worker, is closed."""
        try:
            if self.path.exists():
                with self.path.open("rb+") as file:
                    if file.seek(0, os.SEEK_END) > 0:
                        file.seek(-1, os.SEEK_END)
                        if file.read(1) != b"\n":
                            file.write(b"\n")
        except OSError as error:
            raise output_error(error, self.path.parent) from error

    def write(self, event: Event) -> None:
        """Append one event. Raises OutputError."""
        now = self._now()
        if isinstance(event, Step):
            last = event.step >= event.steps
            if (
                not last
                and event.agreement is None
                and now - self._last_step < 1 / STEPS_PER_SECOND
            ):
                return
            self._last_step = now
        line = json.dumps({**event.to_dict(), "time": now}, allow_nan=False)
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(line + "\n")
        except OSError as error:
            raise output_error(error, self.path.parent) from error


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What `follow` read: the events in order, where to go on, and how many lines were damaged."""

    events: list[dict[str, Any]]
    offset: int
    damaged: int


def follow(folder: Path, offset: int = 0) -> Followed:
    """The events after the byte `offset` of a run folder's journal; a missing one is empty.

    A line that is not whole yet is left for the next call. One that is no event is counted and
    passed over. A file that is shorter than `offset` was begun anew and is read from its beginning.
    """
    events: list[dict[str, Any]] = []
    damaged = 0
    try:
        with (folder / JOURNAL).open("rb") as file:
            if offset < 0 or offset > file.seek(0, os.SEEK_END):
                offset = 0
            file.seek(offset)
            data = file.read(MOST_BYTES)
    except OSError:
        return Followed(events=[], offset=0, damaged=0)
    whole = data.rfind(b"\n") + 1
    if whole == 0 and len(data) == MOST_BYTES:
        # No event is that long: pass over it.
        return Followed(events=[], offset=offset + len(data), damaged=1)
    for line in data[:whole].splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
        elif line.strip():
            damaged += 1
    return Followed(events=events, offset=offset + whole, damaged=damaged)
