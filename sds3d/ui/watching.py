"""What a job's journal says so far, read on from where it was left, for any number of pages."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from sds3d.events import HEALTH_INTERVAL
from sds3d.jobs.job import Job
from sds3d.jobs.service import JobService

KEPT = 64
"""Jobs whose readings are remembered."""
PACE_SECONDS = 15.0
"""The pace is that of the last steps, over so long."""


@dataclass
class Reading:
    """What the events of one run folder said: series by step, and the last word on its health."""

    folder: str | None = None
    offset: int = 0
    stage: str | None = None
    opacity: dict[int, float] = field(default_factory=dict)
    agreement: dict[int, float] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    eta_seconds: float | None = None
    warnings: list[str] = field(default_factory=list)
    health: str | None = None
    health_step: int = 0
    judged_from: int = 0

    def hear(self, event: dict[str, Any]) -> None:
        """Take in one event of the journal."""
        kind = event["event"]
        if kind == "stage":
            self.stage = event.get("name")
            if self.stage == "refine":
                # Another thing is judged from here on: the mesh, and no more the field.
                self.health, self.judged_from = None, self.last_step
        elif kind == "step":
            self._hear_step(event)
        elif kind == "warning":
            _add_once(self.warnings, event.get("text"))
        elif kind == "health" and isinstance(event.get("text"), str):
            self.health = event["text"]
            self.health_step = self.last_step

    def _hear_step(self, event: dict[str, Any]) -> None:
        step = event.get("step")
        if not isinstance(step, int):
            return
        if self.opacity and step <= next(reversed(self.opacity)):
            # A worker was replaced and went on from the last checkpoint: later lines count.
            for series in (self.opacity, self.agreement, self.times):
                for later in [s for s in series if s >= step]:
                    del series[later]
        for name, series in (
            ("opacity", self.opacity),
            ("agreement", self.agreement),
            ("time", self.times),
        ):
            value = event.get(name)
            if isinstance(value, (int, float)):
                series[step] = float(value)
        eta = event.get("eta_seconds")
        self.eta_seconds = float(eta) if isinstance(eta, (int, float)) else None

    @property
    def last_step(self) -> int:
        """The last step of which was told; 0 before there is one."""
        return next(reversed(self.opacity), 0)

    @property
    def is_judged(self) -> bool:
        """Whether the object's health was looked at, so that silence means it is sound."""
        return self.last_step - self.judged_from >= HEALTH_INTERVAL

    @property
    def steps_per_second(self) -> float | None:
        """The pace of the last steps; None before there are two."""
        if len(self.times) < 2:
            return None
        last, end = next(reversed(self.times.items()))
        recent = [item for item in self.times.items() if item[1] > end - PACE_SECONDS]
        first, begin = recent[0]
        return (last - first) / (end - begin) if end > begin and last > first else None


def _add_once(lines: list[str], text: object) -> None:
    if isinstance(text, str) and text not in lines:
        lines.append(text)


class Watching:
    """The readings of the jobs that somebody looks at."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._readings: OrderedDict[str, Reading] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, job: Job) -> Reading:
        """The reading of a job, brought up to date."""
        with self._lock:
            reading = self._readings.pop(job.id, None)
            if reading is None or reading.folder != job.folder:
                reading = Reading(folder=job.folder)
            self._readings[job.id] = reading
            while len(self._readings) > KEPT:
                self._readings.popitem(last=False)
            while True:
                followed = self._service.follow(job, reading.offset)
                if followed.offset < reading.offset:
                    # Its folder was begun anew.
                    reading = self._readings[job.id] = Reading(folder=job.folder)
                for event in followed.events:
                    reading.hear(event)
                if followed.offset == reading.offset:
                    return reading
                reading.offset = followed.offset
