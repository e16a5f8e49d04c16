"""One job from its claim to its end, in the worker's process."""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sds3d.config import GenerateConfig
from sds3d.config_json import folder_name
from sds3d.device import resolve_device
from sds3d.errors import (
    ConfigError,
    DiskFull,
    EmptyField,
    Interrupted,
    OutputError,
    PromptError,
    RunLocked,
    Sds3dError,
    TooLittleMemory,
    is_out_of_memory,
)
from sds3d.events import Event, Preview, Stage
from sds3d.generate import Generated, generate, made_every_step
from sds3d.jobs.bench import Bench, free_memory
from sds3d.jobs.errors import DiskLow, StoreError
from sds3d.jobs.folders import carry_over, discard_begun
from sds3d.jobs.job import Job
from sds3d.jobs.journal import Journal
from sds3d.jobs.ladder import next_rung
from sds3d.jobs.limits import check_disk
from sds3d.jobs.patience import P, T, patiently
from sds3d.jobs.previews import Previewer, Ration
from sds3d.jobs.states import Request, State
from sds3d.jobs.store import Store
from sds3d.jobs.watch import Watch

LOCKED_WAIT_SECONDS = 2.0
_FREED = "out of memory: another teacher's was freed, and it goes on"


def disk_reason(error: DiskLow) -> str:
    """Why a job waits that has no room on the disk, for its user."""
    return f"waits for disk space: {error.shortage}; delete some runs, and it goes on by itself"


class Running:
    """A claimed job and what it needs to be worked on: `run()` brings it to another state."""

    def __init__(
        self,
        job: Job,
        *,
        store: Store,
        out: Path,
        worker: str,
        bench: Bench,
        must_end: Callable[[], bool],
    ) -> None:
        self.job = job
        self._store = store
        self._out = out
        self._worker = worker
        self._must_end = must_end
        self._bench = bench
        self._watch = Watch(store, job, worker, must_end)
        self._journal: Journal | None = None
        self._early: list[Event] = []
        self._folder: Path | None = None if job.folder is None else out / job.folder
        self._weights_sha256 = ""
        self._computed = False
        self._stage = "teacher"
        self.waits_for_disk = False
        """Whether the job is in the queue again because the disk has no room for a run."""

    def run(self) -> None:
        """Work on the job and say in the store how it ended.

        While the store cannot be written, that waits. Raises StoreError, and OutputError where it
        waits and `must_end`.
        """
        exhausted = False
        try:
            generated = self._generate()
        except StoreError:
            raise
        except Interrupted:
            self._interrupted()
        except DiskLow as error:
            self._wait_for_disk(error)
        except DiskFull as error:
            self._disk_was_full(error)
        except RunLocked as error:
            self._write(
                self._store.release,
                self.job.id,
                self._worker,
                wait_seconds=LOCKED_WAIT_SECONDS,
                reason=str(error),
            )
        except EmptyField as error:
            stopped = self._watch.request is Request.STOP
            self._end(State.STOPPED if stopped else State.FAILED, error)
        except TooLittleMemory:
            exhausted = True
        except Sds3dError as error:
            self._end(State.FAILED, error)
        except Exception as error:
            if is_out_of_memory(error):
                exhausted = True
            else:
                traceback.print_exception(error, file=sys.stderr)
                self._count_failure(error)
        else:
            self._made(generated)
        if exhausted:
            # Here, because the exception's own frames no longer hold what filled the memory.
            self._go_down_a_rung()

    def _write(self, write: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
        return patiently(self._must_end, write, *args, **how)

    def _generate(self) -> Generated:
        config = self._config()
        if self._watch.must_stop():
            raise Interrupted(self._out)
        check_disk(self._out, self._bench.limits)
        parts, teacher = self._bench.parts(config.teacher, config.device, self._hear)
        self._weights_sha256 = teacher.weights_sha256
        name = folder_name(config, teacher.weights_sha256)
        if self._watch.must_stop():
            raise Interrupted(self._out / name)
        if self._folder is not None and self._folder.name != name:
            carry_over(self._folder, config, teacher.weights_sha256, self._hear)
        self._folder = self._out / name
        try:
            row = self._write(self._store.report, self.job.id, self._worker, folder=name)
        except OutputError as error:
            # Told to end while it waited: no fault of the job's.
            raise Interrupted(self._folder) from error
        self._watch.lost = self._watch.lost or row is None
        if self._bench.previews:
            loop: Any = parts.optimize
            optimize = functools.partial(loop, observe=self._previewer())
            parts = dataclasses.replace(parts, optimize=optimize)
        return generate(
            config,
            on_event=self._hear,
            should_stop=self._watch.must_stop,
            should_finish=self._watch.must_finish,
            parts=parts,
        )

    def _config(self) -> GenerateConfig:
        """The job's options, for this place and this machine."""
        try:
            config = self.job.options
        except (ConfigError, PromptError) as error:
            raise ConfigError(f"{error}; submit the prompt again") from error
        return self._here(config)

    def _here(self, config: GenerateConfig) -> GenerateConfig:
        return dataclasses.replace(config, out=self._out, device=resolve_device(config.device))

    def _previewer(self) -> Previewer:
        assert self._folder is not None

        return Previewer(
            self._folder,
            lambda path, seconds: self._hear(Preview(path, seconds)),
            Ration(),
            always_at=self.job.pause_at,
        )

    def _hear(self, event: Event) -> None:
        """Log an event; those from before there is a folder are kept until there is one."""
        if isinstance(event, Stage):
            self._stage = event.name
            self._computed = self._computed or event.name == "optimize"
        if self._journal is None and self._folder is not None and self._folder.is_dir():
            self._journal = Journal(self._folder)
            self._journal.begin()
            for earlier in self._early:
                self._journal.write(earlier)
        if self._journal is None:
            self._early.append(event)
        else:
            self._journal.write(event)
        self._watch.hear(event)

    def _made(self, generated: Generated) -> None:
        result = generated.result
        done = made_every_step(result, self._config())
        self._finish(
            State.DONE if done else State.STOPPED,
            step=result["steps"],
            reused=not self._computed,
            error=None,
            reason=None,
        )

    def _interrupted(self) -> None:
        if self._watch.lost:
            return
        if self._watch.request is Request.CANCEL:
            self.cancel()
        elif self._watch.timed_out:
            self._finish(
                State.FAILED,
                error="Timeout",
                reason=f"it took longer than {self.job.timeout_seconds:g} s: allow more time, "
                "or take fewer steps; it goes on from its checkpoint",
            )
        elif self._watch.paused:
            self._finish(State.STOPPED, error=None, reason=None)
        else:
            self._write(self._store.release, self.job.id, self._worker)

    def cancel(self, made: tuple[State, int] | None = None) -> None:
        """Cancel the job and remove its folder, unless that is another's or was there before.

        `made` is what became of a run that ended before it heard of it, and its step.
        """
        folder = None if self._folder is None else self._folder.name
        row = self._write(self._store.cancel, self.job.id, self._worker, folder=folder, made=made)
        if row is not None:
            begun = None if self._folder is None else self._folder.name
            self._write(discard_begun, self._store, self._out, row, begun, made_now=self._computed)

    def _finish(self, state: State, **values: Any) -> None:
        """Say how the job ended, unless it was to be cancelled meanwhile: then it is."""
        if self._write(self._store.finish, self.job.id, self._worker, state, **values) is None:
            # Where it is another worker's now, this does nothing either.
            self.cancel((state, values["step"]) if "step" in values else None)

    def _wait_for_disk(self, error: DiskLow) -> None:
        """Back to the queue: it is no fault of this job's, and the next one would find the same."""
        self.waits_for_disk = True
        self._write(self._store.release, self.job.id, self._worker, reason=disk_reason(error))

    def _disk_was_full(self, error: DiskFull) -> None:
        """The disk had no room in the midst of the run, whose last checkpoint is whole.

        While it has none, the job waits for it as one that has not begun. Where there is room for
        what else comes (a quota, a limit of single files, or what this run alone takes), it is
        tried once more: a second time it is failed.
        """
        try:
            check_disk(self._out, self._bench.limits)
        except DiskLow as low:
            self._wait_for_disk(low)
        else:
            self._write(
                self._store.count_failure,
                self.job.id,
                self._worker,
                error=type(error).__name__,
                reason=str(error),
            )

    def _end(self, state: State, error: Sds3dError) -> None:
        self._finish(state, error=type(error).__name__, reason=str(error))

    def _count_failure(self, error: Exception) -> None:
        self._write(
            self._store.count_failure,
            self.job.id,
            self._worker,
            error=type(error).__name__,
            reason=f"a defect of the program ({type(error).__name__}: {error}); please report it",
        )

    def _go_down_a_rung(self) -> None:
        others = self._bench.forget_others()
        free_memory()
        if others:
            # The memory that a teacher of other jobs took is the first to be given back.
            self._write(self._store.release, self.job.id, self._worker, reason=_FREED)
            return
        options = self.job.options
        together = self._bench.views_together() if options.optimize.camera_conditioning else 1
        lower = next_rung(options, stage=self._stage, together=together)
        if lower is None:
            self._finish(
                State.FAILED,
                error="OutOfMemory",
                reason="memory does not suffice even for the smallest form of this run: "
                "use --preset fast or close other programs",
            )
            return
        config, text = lower
        degraded = f"{self.job.degraded}; {text}" if self.job.degraded else text
        folder = self._begin_lower(self._here(config))
        row = self._write(
            self._store.degrade, self.job.id, self._worker, config, degraded, folder=folder
        )
        if row is not None:
            self._write(
                self._store.release, self.job.id, self._worker, reason=f"out of memory: {degraded}"
            )

    def _begin_lower(self, config: GenerateConfig) -> str | None:
        """The folder in which the smaller run goes on with what is optimised; None: it cannot."""
        if self._folder is None:
            return None
        try:
            carried = carry_over(self._folder, config, self._weights_sha256, self._hear)
        except (Sds3dError, OSError, RuntimeError, MemoryError):
            # It can be optimised once more, where there is again the disk or the memory for it.
            traceback.print_exc(file=sys.stderr)
            return None
        return folder_name(config, self._weights_sha256) if carried else None
