"""The run folders of jobs: carried over to a continuation, and removed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

from sds3d.config import GenerateConfig
from sds3d.config_json import folder_name, run_key
from sds3d.errors import RunError
from sds3d.events import Listener, ignore_event
from sds3d.generate import made_every_step
from sds3d.jobs.job import Job
from sds3d.jobs.states import State
from sds3d.jobs.store import Store
from sds3d.refine import REFINE_FOLDER, first_stage, refine_checkpoint
from sds3d.runs import RunFolder


def carry_over(
    before: Path,
    config: GenerateConfig,
    weights_sha256: str,
    on_event: Listener = ignore_event,
) -> bool:
    """Begin the run of `config` at the checkpoint of the run in `before`; whether that was done.

    It is where the two differ in nothing but the steps after the planned ones, the second stage,
    or the mesh: then the one leads through the other's states, and the result is that of a run
    without a break. Of another second stage no state is taken.
    """
    if before.name == folder_name(config, weights_sha256):
        return False
    try:
        source = RunFolder.open(before, on_event)
    except RunError:
        return False
    asked, began = config.optimize, source.config.optimize
    options = dataclasses.replace(began, extra_steps=asked.extra_steps, refine=asked.refine)
    as_asked = dataclasses.replace(source.config, optimize=options, mesh=config.mesh)
    if run_key(as_asked, source.weights_sha256) != run_key(config, weights_sha256):
        return False
    target = RunFolder.create(config, weights_sha256, on_event)
    with target.locked():
        if target.checkpoint.exists():
            return False
        with source.locked():
            state = source.checkpoint.load()
            same = asked.refine == began.refine
            second = refine_checkpoint(source.path, on_event).load() if same else None
        steps = first_stage(config).optimize.total_steps
        if state is None or state[1].get("step", 0) > steps:
            return False
        target.start()
        target.checkpoint.save(*state)
        if second is not None:
            shutil.copytree(source.path / REFINE_FOLDER, target.path / REFINE_FOLDER)
    return True


def is_finished(path: Path) -> bool:
    """Whether the run in this folder went to its last step and every file of it is whole."""
    try:
        run = RunFolder.open(path)
    except RunError:
        return False
    result = run.result()
    return result is not None and made_every_step(result, run.config) and not run.verify()


def discard_unshared(
    store: Store, out: Path, job_id: str, folder: str, *, keep_finished: bool
) -> None:
    """`discard` a folder that a job has had, unless another job has or had the same one."""
    path = out / folder
    if store.others_with_folder(job_id, folder) == 0:
        discard(path, keep_finished=keep_finished)
    if not path.exists():
        store.forget_folder(job_id, folder)


def discard_begun(
    store: Store, out: Path, job: Job, begun: str | None, *, made_now: bool = False
) -> None:
    """Remove what `job` had begun when it was cancelled, the folder `begun` last.

    Nothing goes that was finished before (with `made_now`, `begun` was not), nothing of another
    job, and where a continuation was taken back nothing of what the job is again.
    """
    if job.state is State.CANCELLED:
        folders = store.folders_of(job.id)
    else:
        folders = [] if begun is None or begun == job.folder else [begun]
    for folder in folders:
        keep_finished = not (made_now and folder == begun)
        discard_unshared(store, out, job.id, folder, keep_finished=keep_finished)


def discard(path: Path, *, keep_finished: bool) -> bool:
    """Remove a run's folder, unless another process is at it; whether it was removed.

    With `keep_finished`, one that is done is kept too.
    """
    if not (path / "config.json").is_file() and not (path / ".lock").is_file():
        return False
    if keep_finished and is_finished(path):
        return False
    try:
        run = RunFolder.open(path)
    except RunError:
        # Not begun, or damaged: no worker can be at it either.
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    with contextlib.suppress(RunError), run.locked():
        shutil.rmtree(path, ignore_errors=True)
    return not path.exists()
