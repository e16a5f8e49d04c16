"""A race of seeds: the same run from several seeds, each paused after its first steps.

Who wins is continued, and becomes the very run that its seed makes without a race.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from sds3d.config import GenerateConfig
from sds3d.errors import ConfigError, Sds3dError
from sds3d.jobs.errors import UnknownJob, WrongState
from sds3d.jobs.job import Job
from sds3d.jobs.service import JobService
from sds3d.jobs.states import FINISHED, State

LEAST_RUNNERS, MOST_RUNNERS = 2, 4


def start_race(
    service: JobService, config: GenerateConfig, *, runners: int, steps: int
) -> list[Job]:
    """Queue `runners` jobs of `config` with its seed and the next ones, each paused after `steps`.

    All of them or none. Raises ConfigError for numbers out of range, and what `service.submit`
    raises.
    """
    if not LEAST_RUNNERS <= runners <= MOST_RUNNERS:
        raise ConfigError(f"the race has {runners} seeds: choose {LEAST_RUNNERS} to {MOST_RUNNERS}")
    started: list[Job] = []
    try:
        for number in range(runners):
            one = dataclasses.replace(config, seed=(config.seed + number) % 2**63)
            started.append(service.submit(one, pause_at=steps))
    except Sds3dError:
        end_race(service, [job.id for job in started])
        raise
    return started


def end_race(service: JobService, job_ids: Sequence[str]) -> None:
    """Cancel those that still wait or run; the others stay, to be continued, or are gone."""
    for job_id in job_ids:
        # One that ended in between needs no end, nor one that was deleted.
        with contextlib.suppress(WrongState, UnknownJob):
            if service.get(job_id).state not in FINISHED:
                service.cancel(job_id)


def continue_winner(service: JobService, job_id: str) -> Job:
    """Take one of a race to its planned end; one that is there already is left as it is."""
    job = service.get(job_id)
    return job if job.state is State.DONE else service.continue_(job_id)


def compare(agreement: Sequence[Mapping[int, float]]) -> list[float | None]:
    """Each one's agreement with the teacher at the last step at which all were measured."""
    common = set.intersection(*(set(series) for series in agreement)) if agreement else set()
    if not common:
        return [None] * len(agreement)
    return [series[max(common)] for series in agreement]
