"""A batch from its list to its pages: items become jobs of a store that lives as long as it does.

What is done is decided by the run folders alone, so the same command again skips what is finished
and goes on with the rest, and several machines may each work on a shard of one list.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sds3d.atomic import make_writable_folder
from sds3d.batch.config import BatchConfig
from sds3d.batch.disk import DiskWatch
from sds3d.batch.prompts import Line, PromptList, read_prompts
from sds3d.batch.report import Report, Row
from sds3d.errors import Interrupted, OutputError, quoted
from sds3d.events import Item, Listener, Summary, Warning, ignore_event
from sds3d.jobs.bench import Bench
from sds3d.jobs.errors import DiskLow, WorkersFail
from sds3d.jobs.job import Job
from sds3d.jobs.limits import LimitsConfig, check_disk
from sds3d.jobs.service import JobService
from sds3d.jobs.states import ACTIVE, FINISHED, State
from sds3d.jobs.supervisor import TEND_SECONDS, WORKER_COMMAND, Supervisor

UNLIMITED = 10**12
_OUTCOMES = {"Timeout": "timeout", "OutOfMemory": "oom"}


class BatchInterrupted(Interrupted):
    """The user stopped the batch; what is done stays, what was begun can go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.args = (f"stopped; the same command goes on with what is in {quoted(folder)}",)


class Workers(Protocol):
    """Whoever takes the jobs of the store: processes of this machine, or actors of a cluster."""

    @property
    def trouble(self) -> str | None: ...
    @property
    def log(self) -> Path | None: ...
    def start(self) -> None: ...
    def tend(self) -> None: ...
    def __enter__(self) -> Workers: ...
    def __exit__(self, *_: object) -> None: ...


def run_batch(
    config: BatchConfig,
    *,
    on_event: Listener = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
    command: Sequence[str] = WORKER_COMMAND,
    make_bench: Callable[[], Bench] | None = None,
) -> Summary:
    """Work off the list of `config`; returns the summary, its page and log written if they can be.

    The workers are processes that run `command`, or on a Ray cluster actors with what `make_bench`
    makes. Where the disk has no room the items wait for it; they count as failed when that takes
    too long. Raises BadInput before anything is started, WorkersFail where no worker comes up,
    BatchInterrupted when `should_stop` says yes.
    """
    prompts = read_prompts(config)
    make_writable_folder(config.out)
    shard, shards = config.shard_of()
    mine = prompts.lines[shard - 1 :: shards]
    for number, text in prompts.faults:
        on_event(Warning(f"left out line {number}: {text}"))
    name = "" if shards == 1 else f"-{shard}-of-{shards}"
    report = Report(config.out, name)
    # On this machine's own disk: SQLite wants no network, and shards may share one folder.
    with (
        tempfile.TemporaryDirectory(prefix="sds3d-batch-", ignore_cleanup_errors=True) as folder,
        JobService(
            config.out,
            limits=_limits(),
            store_path=Path(folder) / "jobs.sqlite3",
        ) as service,
    ):

        def make_workers(count: int) -> Workers:
            if config.ray is None:
                return Supervisor(service.store, config.out, workers=count, command=command)
            from sds3d.batch.ray_run import RayWorkers

            # How many of them Ray puts on one device is not known: at most all.
            make = make_bench or functools.partial(Bench, workers=count)
            return RayWorkers(
                config, service.store, workers=count, make_bench=make, on_event=on_event
            )

        batch = _Batch(config, prompts, mine, service, report, on_event)
        return batch.run(should_stop, make_workers)


def _limits() -> LimitsConfig:
    """A batch is its user's own machine: only the disk limits it."""
    return LimitsConfig(
        max_queued=UNLIMITED,
        max_steps=UNLIMITED,
        max_render_resolution=UNLIMITED,
        max_refine_resolution=UNLIMITED,
        max_views_per_step=UNLIMITED,
        max_mesh_resolution=UNLIMITED,
        max_faces=UNLIMITED,
        max_texture_size=UNLIMITED,
        max_field_values=UNLIMITED,
        max_hidden_dim=UNLIMITED,
        max_occupancy_resolution=UNLIMITED,
        min_step_size=0.0,
        max_perturbations=UNLIMITED,
        max_ode_steps=UNLIMITED,
        max_lora_rank=UNLIMITED,
    )


class _Batch:
    def __init__(
        self,
        config: BatchConfig,
        prompts: PromptList,
        lines: list[Line],
        service: JobService,
        report: Report,
        on_event: Listener,
    ) -> None:
        self._config = config
        self._bad_lines = len(prompts.faults)
        self._service = service
        self._report = report
        self._on_event = on_event
        self._started = time.monotonic()
        self._waiting = {self._submit(line).id: line for line in lines}
        self._total = len(lines)
        self._computed = 0
        self._disk = DiskWatch(lambda: check_disk(config.out, service.limits), on_event)

    def _submit(self, line: Line) -> Job:
        return self._service.submit(
            line.config,
            max_failures=self._config.retries + 1,
            timeout_seconds=self._config.timeout,
        )

    def run(
        self, should_stop: Callable[[], bool], make_workers: Callable[[int], Workers]
    ) -> Summary:
        no_room: DiskLow | None = None
        with make_workers(max(1, min(self._config.workers, self._total))) as workers:
            if self._waiting:
                workers.start()
            while self._waiting and not should_stop():
                self._report_finished()
                if workers.trouble is not None:
                    raise WorkersFail(_with_log(workers))
                if (no_room := self._look_at_the_disk()) is not None:
                    break
                time.sleep(TEND_SECONDS)
                workers.tend()
        stopped = bool(self._waiting) and no_room is None
        self._report_finished()
        if no_room is not None:
            self._fail_the_rest(no_room)
        summary = self._finish()
        if stopped and self._waiting:
            raise BatchInterrupted(self._config.out)
        return summary

    def _report_finished(self) -> None:
        if self._service.store.count(FINISHED) == self._total - len(self._waiting):
            return
        for job in self._service.jobs(FINISHED):
            if (line := self._waiting.pop(job.id, None)) is None:
                continue
            outcome = _outcome(job)
            self._computed += outcome != "skipped"
            self._tell(line, job, outcome)

    def _tell(self, line: Line, job: Job, outcome: str) -> None:
        self._report.add(Row.of(line, job, outcome))
        self._on_event(
            Item(
                line=line.number,
                prompt=line.config.prompt,
                outcome=outcome,
                folder=self._service.folder(job),
                seconds=job.seconds,
                reason=job.reason,
                done=self._total - len(self._waiting),
                total=self._total,
                eta_seconds=self._eta(),
            )
        )

    def _look_at_the_disk(self) -> DiskLow | None:
        queued = self._service.store.count((State.QUEUED,))
        return self._disk.hopeless(queued, lambda: self._service.jobs(ACTIVE))

    def _fail_the_rest(self, error: DiskLow) -> None:
        """What was begun has its checkpoint, and the same command goes on with all of it."""
        reason = f"{error.shortage}: delete something, then give the same command again"
        for job_id in list(self._waiting):
            line = self._waiting.pop(job_id)
            job = self._service.get(job_id)
            job = dataclasses.replace(job, error=DiskLow.__name__, reason=reason)
            self._tell(line, job, "failed")

    def _eta(self) -> float | None:
        """From the pace of what was computed, the progress of what is being computed included."""
        active = self._service.jobs(ACTIVE)
        worth = self._computed + sum(job.step / job.steps for job in active if job.steps)
        if worth == 0:
            return None
        pace = (time.monotonic() - self._started) / worth
        return pace * max(0.0, self._computed + len(self._waiting) - worth)

    def _finish(self) -> Summary:
        for job_id, line in self._waiting.items():
            self._report.add(Row.of(line, self._service.get(job_id), "unfinished"))
        index = self._write_report()
        counts = self._report.counts()
        summary = Summary(
            ok=counts.get("ok", 0),
            skipped=counts.get("skipped", 0),
            failed=sum(counts.get(name, 0) for name in ("failed", "timeout", "oom")),
            unfinished=counts.get("unfinished", 0),
            bad_lines=self._bad_lines,
            seconds=time.monotonic() - self._started,
            index=index,
        )
        self._on_event(summary)
        return summary

    def _write_report(self) -> Path | None:
        """The page's path; None where log and page have no room, which no run pays for."""
        try:
            return self._report.write()
        except OutputError as error:
            text = f"the runs are whole, but not the batch's log and page: {error}"
            self._on_event(Warning(text))
            return None


def _outcome(job: Job) -> str:
    if job.state is State.DONE:
        return "skipped" if job.reused else "ok"
    return _OUTCOMES.get(job.error or "", "failed")


def _with_log(workers: Workers) -> str:
    """The trouble with the last lines of the workers' log, which goes with the batch."""
    try:
        text = "" if workers.log is None else workers.log.read_text("utf-8", "replace")
    except OSError:
        text = ""
    return " | ".join([str(workers.trouble), *text.splitlines()[-3:]])
