"""One job after another in this process: stop, continue, cancel, and every way to fail."""

import dataclasses
import functools
import gc
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sds3d.config import GenerateConfig, MeshConfig
from sds3d.errors import ConfigError, EmptyField, OutputError
from sds3d.events import Stage, Step, ignore_event
from sds3d.generate import export_run, generate
from sds3d.jobs import running
from sds3d.jobs.bench import Bench
from sds3d.jobs.errors import WrongState
from sds3d.jobs.folders import carry_over
from sds3d.jobs.job import Job
from sds3d.jobs.ladder import next_rung
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService
from sds3d.jobs.states import Request, State
from sds3d.jobs.watch import Watch
from sds3d.jobs.worker import Worker
from sds3d.optimize import optimize
from sds3d.optimize_config import OptimizeConfig, RefineOptions
from sds3d.refine import refine_checkpoint
from sds3d.runs import RunFolder

MakeConfig = Callable[..., GenerateConfig]
MakeWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def _ask_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps here take no time: the watch must not wait between two looks."""
    monkeypatch.setattr("sds3d.jobs.watch.POLL_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _quick_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory runs short all of the process's objects are looked at: many, in a test's."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def _asking(fakes: SimpleNamespace, at: int, ask: Callable[[], object]) -> Any:
    """The fake loop; after step `at` the user asks for something, once."""
    loop, asked = fakes.Loop(), []

    def optimize(config: Any, teacher: Any, *, on_event: Any, **how: Any) -> Any:
        def listen(event: Any) -> None:
            on_event(event)
            if isinstance(event, Step) and event.step == at and not asked:
                asked.append(True)
                ask()

        return loop(config, teacher, on_event=listen, **how)

    return SimpleNamespace(optimize=optimize, loop=loop)


def _hashes(service: JobService, job: Job) -> dict[str, str]:
    result = service.result(job)
    assert result is not None
    return {name: digest for name, digest in result["files"].items() if name != "config.json"}


def _uninterrupted(fakes: SimpleNamespace, config: GenerateConfig, out: Path) -> dict[str, str]:
    made = generate(dataclasses.replace(config, out=out), parts=fakes.make_parts())
    return {k: v for k, v in made.result["files"].items() if k != "config.json"}


def test_a_job_is_done_and_its_folder_tells_how(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker
) -> None:
    job = service.submit(make_config())
    worker = make_worker()
    assert worker.run_next()
    assert not worker.run_next()
    done = service.get(job.id)
    assert (done.state, done.step, done.steps, done.reused) == (State.DONE, 10, 10, False)
    assert done.worker is None
    assert done.error is None
    assert done.seconds is not None
    folder = service.folder(done)
    assert folder is not None
    assert folder.parent == service.out
    assert RunFolder.open(folder).verify() == []
    events = service.follow(done).events
    names = [event["event"] for event in events]
    assert names[0] == "stage"
    assert names[-1] == "result"
    assert [e["step"] for e in events if e["event"] == "step"][-1] == 10
    assert service.file(done, "mesh.glb") == folder.resolve() / "mesh.glb"
    assert service.file(done, ".lock") is None
    assert service.file(done, "../jobs.sqlite3") is None


def test_the_same_request_again_is_found_and_not_computed(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    first, second = service.submit(make_config()), service.submit(make_config())
    loop = fakes.Loop()
    make_worker(loop=loop).run(until_idle=True)
    assert loop.steps_done == 10
    assert service.get(second.id).reused
    assert not service.get(first.id).reused
    # Two jobs, one folder: it goes with the last of them.
    folder = service.folder(service.get(first.id))
    assert folder is not None
    service.delete(first.id)
    assert folder.is_dir()
    service.delete(second.id)
    assert not folder.exists()


def test_stop_ends_within_a_step_keeps_a_mesh_and_continue_ends_with_the_same_bits(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    tmp_path: Path,
) -> None:
    config = make_config()
    job = service.submit(config)
    asking = _asking(fakes, 4, lambda: service.stop(job.id))
    make_worker(loop=asking.optimize).run_next()
    stopped = service.get(job.id)
    assert (stopped.state, stopped.step, stopped.steps) == (State.STOPPED, 4, 10)
    result = service.result(stopped)
    assert result is not None
    assert result["steps"] == 4
    folder = service.folder(stopped)
    assert folder is not None
    assert RunFolder.open(folder).verify() == []
    early = _hashes(service, stopped)

    # Another mesh of the stopped run makes no step, and says so in its result.
    loop = fakes.Loop()
    again = export_run(folder, max_faces=500, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == 0
    assert again.result["steps"] == 4
    assert again.result["config"]["optimize"]["steps"] == 10

    queued = service.continue_(job.id)
    assert (queued.id, queued.state) == (job.id, State.QUEUED)
    make_worker(loop=loop).run_next()
    done = service.get(job.id)
    assert (done.state, done.step) == (State.DONE, 10)
    assert loop.steps_done == 6
    assert _hashes(service, done) == _uninterrupted(fakes, config, tmp_path / "whole") != early


def test_continue_adds_steps_to_a_done_run_and_keeps_both(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    tmp_path: Path,
) -> None:
    config = make_config()
    job = service.submit(config)
    make_worker().run_next()
    first = service.get(job.id)
    with pytest.raises(WrongState, match="how many more"):
        service.continue_(job.id)
    service.continue_(job.id, extra_steps=5)
    loop = fakes.Loop()
    make_worker(loop=loop).run_next()
    longer = service.get(job.id)
    assert (longer.state, longer.step, longer.steps) == (State.DONE, 15, 15)
    assert loop.steps_done == 5
    assert longer.folder != first.folder
    assert first.folder is not None
    assert RunFolder.open(service.out / first.folder).verify() == []
    options = OptimizeConfig(steps=10, extra_steps=5)
    whole = dataclasses.replace(config, optimize=options)
    assert _hashes(service, longer) == _uninterrupted(fakes, whole, tmp_path / "whole")


def test_cancel_removes_what_was_begun(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    job = service.submit(make_config())
    asking = _asking(fakes, 4, lambda: service.cancel(job.id))
    make_worker(loop=asking.optimize).run_next()
    assert service.get(job.id).state is State.CANCELLED
    assert asking.loop.steps_done == 4
    assert not [path for path in service.out.iterdir() if path.is_dir()]
    waiting = service.submit(make_config())
    assert service.cancel(waiting.id).state is State.CANCELLED
    assert not make_worker().run_next()
    for finished in (job, waiting):
        with pytest.raises(WrongState, match="cancelled"):
            service.cancel(finished.id)
        with pytest.raises(WrongState, match="is cancelled and cannot be continued"):
            service.continue_(finished.id)


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancel_while_the_mesh_is_made_is_heard(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    fails: bool,
) -> None:
    """The loop is through and asks no more."""

    def write_files(optimized: Any, config: GenerateConfig, folder: Path, on_event: Any) -> Any:
        on_event(Stage("mesh"))
        on_event(Stage("export"))
        asked.append(service.cancel(job.id).state)
        if fails:
            raise EmptyField("no surface")
        return fakes.write_files(optimized, config, folder, ignore_event)

    asked: list[State] = []
    job = service.submit(make_config())
    make_worker(write_files=write_files).run_next()
    assert asked == [State.STOPPING]
    assert service.get(job.id).state is State.CANCELLED
    assert _folders(service) == set()


def test_a_cancel_in_the_last_moment_takes_back_a_continuation_and_spares_what_another_made(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    job = service.submit(make_config())
    make_worker().run_next()
    done = service.get(job.id)
    before = _hashes(service, done)

    def write_files(*args: Any) -> Any:
        written = fakes.write_files(*args)
        service.cancel(job.id)
        return written

    service.continue_(job.id, extra_steps=5)
    make_worker(write_files=write_files).run_next()
    back = service.get(job.id)
    assert (back.state, back.folder, back.steps) == (State.DONE, done.folder, 10)
    assert _folders(service) == {done.folder}
    assert _hashes(service, back) == before
    # Found finished and only then cancelled: it was there before.
    made = generate(
        dataclasses.replace(make_config(seed=7), out=service.out), parts=fakes.make_parts()
    )
    second = service.submit(make_config(seed=7))
    service.store.claim("w")
    row = service.store.report(second.id, "w", folder=made.folder.name)
    assert row is not None
    service.cancel(second.id)
    service.store.release(second.id, "w")
    make_worker().run_next()
    assert service.get(second.id).state is State.CANCELLED
    assert RunFolder.open(made.folder).verify() == []


def test_to_cancel_a_continuation_gives_back_the_stopped_run(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    job = service.submit(make_config())
    make_worker(loop=_asking(fakes, 4, lambda: service.stop(job.id)).optimize).run_next()
    before = _hashes(service, service.get(job.id))
    service.continue_(job.id)
    make_worker(loop=_asking(fakes, 7, lambda: service.cancel(job.id)).optimize).run_next()
    back = service.get(job.id)
    assert (back.state, back.step) == (State.STOPPED, 4)
    assert _hashes(service, back) == before
    # And one with more steps, in a folder of its own, which goes.
    service.continue_(job.id)
    make_worker().run_next()
    done = service.get(job.id)
    service.continue_(job.id, extra_steps=5)
    make_worker(loop=_asking(fakes, 12, lambda: service.cancel(job.id)).optimize).run_next()
    back = service.get(job.id)
    assert (back.state, back.folder, back.steps) == (State.DONE, done.folder, 10)
    folders = [path.name for path in service.out.iterdir() if path.is_dir()]
    assert folders == [done.folder]
    assert _hashes(service, back) == _hashes(service, done)


def test_a_continuation_that_was_made_before_it_heard_of_its_cancelling_is_what_it_made(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    """It goes on in the stopped run's own folder, where the new result is that run's now."""
    job = service.submit(make_config())
    make_worker(loop=_asking(fakes, 4, lambda: service.stop(job.id)).optimize).run_next()
    folder = service.get(job.id).folder

    def cancelled_in_the_export(*args: Any) -> Any:
        written = fakes.write_files(*args)
        service.cancel(job.id)
        return written

    service.continue_(job.id)
    asking = _asking(fakes, 7, lambda: service.stop(job.id))
    make_worker(loop=asking.optimize, write_files=cancelled_in_the_export).run_next()
    back = service.get(job.id)
    assert (back.state, back.step, back.folder) == (State.STOPPED, 7, folder)
    assert (service.result(back) or {})["steps"] == 7
    service.continue_(job.id)
    make_worker(write_files=cancelled_in_the_export).run_next()
    back = service.get(job.id)
    assert (back.state, back.step, back.folder) == (State.DONE, 10, folder)
    assert (service.result(back) or {})["steps"] == 10
    assert back.worker is None
    # It is continued as any that is done.
    with pytest.raises(WrongState, match="how many more"):
        service.continue_(job.id)


def _folders(service: JobService) -> set[str]:
    return {path.name for path in service.out.iterdir() if path.is_dir()}


def test_a_deleted_job_takes_along_every_folder_that_no_other_has(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker
) -> None:
    job = service.submit(make_config())
    make_worker().run_next()
    first = service.get(job.id).folder
    service.continue_(job.id, extra_steps=5)
    longer = OptimizeConfig(steps=10, extra_steps=5)
    other = service.submit(make_config(optimize=longer))
    make_worker().run(until_idle=True)
    second = service.get(job.id).folder
    assert service.get(other.id).reused
    assert _folders(service) == {first, second}
    service.delete(job.id)
    assert _folders(service) == {second}
    service.delete(other.id)
    assert _folders(service) == set()


def test_a_job_that_took_less_memory_leaves_no_folder_behind(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    loop, asked = fakes.Loop(), []

    def optimize(config: GenerateConfig, teacher: Any, **how: Any) -> Any:
        asked.append(config.optimize.views_per_step)
        if config.optimize.views_per_step > 1:
            raise MemoryError
        return loop(config, teacher, **how)

    job = service.submit(make_config(optimize=OptimizeConfig(steps=3, views_per_step=4)))
    make_worker(loop=optimize).run(until_idle=True)
    assert service.get(job.id).state is State.DONE
    assert asked == [4, 2, 1]
    assert len(_folders(service)) == 3
    service.delete(job.id)
    assert _folders(service) == set()


def test_what_a_continuation_that_failed_had_made_goes_when_it_is_taken_back(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker
) -> None:
    def empty(*_: Any) -> Any:
        raise EmptyField("no surface")

    job = service.submit(make_config())
    make_worker().run_next()
    done = service.get(job.id)
    service.continue_(job.id, extra_steps=5)
    make_worker(write_files=empty).run_next()
    assert service.get(job.id).state is State.FAILED
    assert len(_folders(service)) == 2
    service.continue_(job.id)
    back = service.cancel(job.id)
    assert (back.state, back.folder) == (State.DONE, done.folder)
    assert _folders(service) == {done.folder}
    assert _hashes(service, back) == _hashes(service, done)


def test_a_stop_before_the_beginning_has_nothing_to_keep(
    service: JobService, make_config: MakeConfig
) -> None:
    job = service.submit(make_config())
    assert service.stop(job.id).state is State.CANCELLED


def test_a_stop_while_its_worker_is_replaced_is_obeyed_by_the_next(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    job = service.submit(make_config())
    steps: list[int] = []

    def end_at(limit: int) -> Callable[[], bool]:
        return lambda: len(steps) >= limit

    worker = make_worker(loop=_counting(fakes, steps))
    assert worker.run_next(end_at(4))
    released = service.get(job.id)
    assert (released.state, released.worker) == (State.QUEUED, None)
    assert released.folder is not None
    asked = service.stop(job.id)
    assert (asked.state, asked.request) == (State.QUEUED, Request.STOP)
    worker.run_next()
    stopped = service.get(job.id)
    assert (stopped.state, stopped.step) == (State.STOPPED, 5)
    assert service.result(stopped) is not None


def _counting(fakes: SimpleNamespace, steps: list[int]) -> Any:
    loop = fakes.Loop()

    def optimize(config: Any, teacher: Any, *, on_event: Any, **how: Any) -> Any:
        def listen(event: Any) -> None:
            if isinstance(event, Step):
                steps.append(event.step)
            on_event(event)

        return loop(config, teacher, on_event=listen, **how)

    return optimize


def test_a_worker_that_is_told_to_end_gives_its_job_back_and_no_step_is_lost(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    tmp_path: Path,
) -> None:
    config, steps = make_config(), []
    job = service.submit(config)
    worker = make_worker(loop=_counting(fakes, steps))
    while service.get(job.id).state is not State.DONE:
        limit = len(steps) + 3
        worker.run_next(lambda limit=limit: len(steps) >= limit)
    assert steps == list(range(1, 11))
    assert service.get(job.id).failures == 0
    whole = _uninterrupted(fakes, config, tmp_path / "whole")
    assert _hashes(service, service.get(job.id)) == whole


def test_named_errors_fail_the_job_with_what_to_do(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker
) -> None:
    def empty(*_: Any) -> Any:
        raise EmptyField("no surface: try another --seed")

    unknown = service.submit(make_config("a hamburger"))
    nothing = service.submit(make_config())
    make_worker(write_files=empty).run(until_idle=True)
    failed = [service.get(job.id) for job in (unknown, nothing)]
    assert [job.state for job in failed] == [State.FAILED] * 2
    assert [job.error for job in failed] == ["PromptError", "EmptyField"]
    assert "nearest: mushroom" in str(failed[0].reason)
    assert "another --seed" in str(failed[1].reason)
    # It can be tried again, and what it had made is not made again.
    service.continue_(nothing.id)
    make_worker().run_next()
    assert service.get(nothing.id).state is State.DONE


def test_a_stop_where_nothing_can_be_seen_yet_keeps_the_run(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    def empty(*_: Any) -> Any:
        raise EmptyField("no surface")

    job = service.submit(make_config())
    asking = _asking(fakes, 2, lambda: service.stop(job.id))
    make_worker(loop=asking.optimize, write_files=empty).run_next()
    stopped = service.get(job.id)
    assert (stopped.state, stopped.reason) == (State.STOPPED, "no surface")
    service.continue_(job.id)
    make_worker().run_next()
    assert service.get(job.id).state is State.DONE


def test_a_defect_is_tried_once_more_and_then_failed(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, capsys: Any
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("oops")

    job = service.submit(make_config())
    worker = make_worker(write_files=defect)
    worker.run_next()
    assert (service.get(job.id).state, service.get(job.id).failures) == (State.QUEUED, 1)
    worker.run_next()
    failed = service.get(job.id)
    assert (failed.state, failed.error) == (State.FAILED, "ZeroDivisionError")
    assert "please report" in str(failed.reason)
    assert "Traceback" in capsys.readouterr().err
    assert not worker.run_next()


def test_a_job_that_is_too_slow_is_failed_with_its_checkpoint(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def pass_time() -> None:
        # Longer than the store is not asked.
        now[0] += 61.0

    monkeypatch.setattr(running, "Watch", functools.partial(Watch, now=lambda: now[0]))
    job = service.submit(make_config(), timeout_seconds=60)
    asking = _asking(fakes, 4, pass_time)
    make_worker(loop=asking.optimize).run_next()
    assert asking.loop.steps_done == 4
    failed = service.get(job.id)
    assert (failed.state, failed.error) == (State.FAILED, "Timeout")
    folder = service.folder(failed)
    assert folder is not None
    assert RunFolder.open(folder).checkpoint.exists()


def test_memory_that_does_not_suffice_is_asked_for_less_until_nothing_is_left(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    loop = fakes.Loop()

    def needs(most_views: int, side: int) -> Any:
        def optimize(config: GenerateConfig, teacher: Any, **how: Any) -> Any:
            options = config.optimize
            if options.views_per_step > most_views or max(options.resolutions) > side:
                raise MemoryError
            return loop(config, teacher, **how)

        return optimize

    job = service.submit(make_config(optimize=OptimizeConfig(steps=3, views_per_step=4)))
    make_worker(loop=needs(1, 32)).run(until_idle=True)
    done = service.get(job.id)
    assert done.state is State.DONE
    assert done.degraded == (
        "2 instead of 4 views per step; 1 instead of 2 views per step; views of 32 pixels"
    )
    assert (done.options.optimize.views_per_step, done.failures) == (1, 0)
    hopeless = service.submit(make_config(seed=1))
    make_worker(loop=needs(0, 0)).run(until_idle=True)
    failed = service.get(hopeless.id)
    assert (failed.state, failed.error) == (State.FAILED, "OutOfMemory")
    assert "--preset fast" in str(failed.reason)


def test_views_that_a_teacher_judges_together_stay_together(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    class JudgesFour(fakes.Teacher):
        views_per_object = 4

    loop, asked = fakes.Loop(), []

    def optimize(config: GenerateConfig, teacher: Any, **how: Any) -> Any:
        options = config.optimize
        asked.append((options.views_per_step, max(options.resolutions)))
        if options.views_per_step % 4 and options.camera_conditioning:
            raise ConfigError("this teacher judges 4 views of an object together")
        if max(options.resolutions) > 32:
            raise MemoryError
        return loop(config, teacher, **how)

    def degraded(**fields: Any) -> str | None:
        asked.clear()
        job = service.submit(make_config(optimize=OptimizeConfig(steps=3, **fields)))
        worker = make_worker(loop=optimize, teacher=JudgesFour())
        worker.run(until_idle=True)
        assert service.get(job.id).state is State.DONE
        return service.get(job.id).degraded

    assert degraded(views_per_step=8) == "4 instead of 8 views per step; views of 32 pixels"
    assert asked == [(8, 64), (4, 64), (4, 32)]
    assert degraded(views_per_step=4) == "views of 32 pixels"
    # Told no camera, it judges each by itself.
    assert degraded(views_per_step=2, camera_conditioning=False) == (
        "1 instead of 2 views per step; views of 32 pixels"
    )


def test_a_mesh_for_which_memory_does_not_suffice_leaves_the_views_alone(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    def write_files(optimized: Any, config: GenerateConfig, folder: Path, on_event: Any) -> Any:
        on_event(Stage("mesh"))
        if config.mesh.mesh_resolution > least:
            raise MemoryError
        return fakes.write_files(optimized, config, folder, on_event)

    least = 64
    job = service.submit(make_config())
    make_worker(write_files=write_files).run(until_idle=True)
    done = service.get(job.id)
    text = "a mesh from a grid of 64 cells along an axis and a texture of 512 pixels"
    assert (done.state, done.degraded) == (State.DONE, text)
    assert done.options.optimize == make_config().optimize
    least = 16
    hopeless = service.submit(make_config(seed=1))
    make_worker(write_files=write_files).run(until_idle=True)
    failed = service.get(hopeless.id)
    assert (failed.state, failed.error) == (State.FAILED, "OutOfMemory")


def test_for_a_smaller_mesh_nothing_is_optimised_again(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    """The real loop; memory runs out in the mesh, twice: what is exported is what was optimised."""
    steps: list[int] = []
    exported: list[dict[str, torch.Tensor]] = []

    def count(config: GenerateConfig, teacher: Any, *, on_event: Any, **how: Any) -> Any:
        def listen(event: Any) -> None:
            on_event(event)
            steps.extend([event.step] if isinstance(event, Step) else [])

        return optimize(config, teacher, on_event=listen, **how)

    def write_files(optimized: Any, config: GenerateConfig, folder: Path, on_event: Any) -> Any:
        on_event(Stage("mesh"))
        (particle,) = optimized.particles
        exported.append({name: value.clone() for name, value in particle.state_dict().items()})
        if config.mesh.mesh_resolution > 64:
            raise MemoryError
        (folder / "mesh.glb").write_bytes(b"mesh")
        return {"mesh": {}, "iso_iou": 1.0}

    mesh = MeshConfig(mesh_resolution=256, texture_size=1024)
    job = service.submit(make_config(optimize=fakes.tiny_options, mesh=mesh))
    worker = make_worker(loop=count, teacher=fakes.GreyTeacher(), write_files=write_files)
    worker.run_next()
    lower = service.get(job.id)
    assert (lower.state, lower.step) == (State.QUEUED, 4)
    assert lower.folder is not None
    assert RunFolder.open(service.out / lower.folder).checkpoint.exists()
    worker.run(until_idle=True)
    done = service.get(job.id)
    assert (done.state, done.options.mesh.mesh_resolution) == (State.DONE, 64)
    assert done.degraded is not None
    assert "128 cells along an axis and a texture of 512" in done.degraded
    assert steps == [1, 2, 3, 4]
    assert len(exported) == 3
    for other in exported[1:]:
        assert all(torch.equal(other[name], value) for name, value in exported[0].items())
    result = service.result(done)
    assert result is not None
    assert result["agreement"][-1][0] == 4
    # The folders of the larger ones are the job's too.
    assert len(_folders(service)) == 3
    service.delete(job.id)
    assert _folders(service) == set()


def test_a_second_stage_for_which_memory_does_not_suffice_keeps_the_first(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """Its own states are of views of another size: those are not taken."""
    refine = RefineOptions(refine_steps=5)
    before = make_config(optimize=OptimizeConfig(refine=refine), out=tmp_path)
    lower = next_rung(before, stage="refine")
    assert lower is not None
    run = RunFolder.create(before, "a" * 64)
    with run.locked():
        run.start()
        run.checkpoint.save({"position": torch.ones(3)}, {"step": before.optimize.steps})
        second = refine_checkpoint(run.path, ignore_event)
        second.folder.mkdir()
        second.save({"vertices": torch.ones(3)}, {"step": 2})
    assert carry_over(run.path, lower[0], "a" * 64)
    other = RunFolder.create(lower[0], "a" * 64)
    state = other.checkpoint.load()
    assert state is not None
    assert state[1] == {"step": before.optimize.steps}
    assert refine_checkpoint(other.path, ignore_event).load() is None
    # Other views of the first stage are another run.
    fewer = dataclasses.replace(lower[0].optimize, views_per_step=1)
    assert not carry_over(run.path, dataclasses.replace(lower[0], optimize=fewer), "a" * 64)


def test_what_cannot_be_carried_over_is_optimised_again(
    service: JobService,
    make_config: MakeConfig,
    make_worker: MakeWorker,
    fakes: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_files(optimized: Any, config: GenerateConfig, folder: Path, on_event: Any) -> Any:
        on_event(Stage("mesh"))
        if config.mesh.mesh_resolution > 64:
            raise MemoryError
        return fakes.write_files(optimized, config, folder, on_event)

    def refuse(*_: Any) -> bool:
        raise OutputError("the disk is full")

    monkeypatch.setattr(running, "carry_over", refuse)
    job = service.submit(make_config())
    loop = fakes.Loop()
    make_worker(loop=loop, write_files=write_files).run(until_idle=True)
    assert service.get(job.id).state is State.DONE
    assert loop.steps_done == 20


def test_the_rungs_of_a_second_stage_are_its_own() -> None:
    refine = RefineOptions(refine_steps=5, refine_views_per_step=8)
    config = GenerateConfig(
        prompt="a car", optimize=OptimizeConfig(views_per_step=8, refine=refine)
    )
    found = next_rung(config, stage="refine", together=4)
    assert found is not None
    lower, text = found
    assert text == "views of 256 pixels in the second stage"
    expected = dataclasses.replace(refine, refine_resolution=256, refine_views_per_step=4)
    assert lower.optimize == dataclasses.replace(config.optimize, refine=expected)
    # A teacher of its own may want them as they are, and so may one that is not known yet.
    other = dataclasses.replace(refine, refine_teacher="folder")
    config = dataclasses.replace(
        config, optimize=dataclasses.replace(config.optimize, refine=other)
    )
    found = next_rung(config, stage="refine", together=4)
    assert found is not None
    assert found[0].optimize.refine.refine_views_per_step == 8
    found = next_rung(config, stage="teacher", together=None)
    assert found is not None
    assert (found[0].optimize.views_per_step, found[1]) == (8, "views of 32 pixels")


def test_a_folder_that_another_process_holds_is_waited_for(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, monkeypatch: Any
) -> None:
    monkeypatch.setattr(running, "LOCKED_WAIT_SECONDS", 0.0)
    config = dataclasses.replace(make_config(), out=service.out)
    job = service.submit(config)
    run = RunFolder.create(config, "a" * 64)
    worker = make_worker()
    with run.locked():
        assert worker.run_next()
        waiting = service.get(job.id)
        assert waiting.state is State.QUEUED
        assert "another process" in str(waiting.reason)
        assert waiting.failures == 0
    worker.run_next()
    assert service.get(job.id).state is State.DONE


def test_two_workers_share_the_queue_and_every_job_is_done_once(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker, fakes: SimpleNamespace
) -> None:
    jobs = [service.submit(make_config(seed=seed, steps=4)) for seed in range(12)]
    loops = [fakes.Loop(step_seconds=0.002) for _ in range(2)]
    workers = [make_worker(f"w{i}", loop=loop) for i, loop in enumerate(loops)]
    threads = [threading.Thread(target=w.run, kwargs={"until_idle": True}) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {service.get(job.id).state for job in jobs} == {State.DONE}
    assert sum(loop.steps_done for loop in loops) == 12 * 4
    assert all(loop.steps_done > 0 for loop in loops)


def test_a_worker_says_that_it_lives_and_what_it_does(
    service: JobService, make_config: MakeConfig, fakes: SimpleNamespace
) -> None:
    parts = fakes.make_parts(loop=fakes.Loop(step_seconds=0.02))
    bench = Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))
    worker = Worker(service.store, service.out, name="w", bench=bench, heartbeat_seconds=0.01)
    job = service.submit(make_config(steps=20))
    thread = threading.Thread(target=worker.run, kwargs={"until_idle": True})
    thread.start()
    beats, doing = set(), set()
    while thread.is_alive():
        for row in service.store.workers():
            beats.add(row.heartbeat)
            doing.add(row.doing)
        time.sleep(0.005)
    thread.join()
    assert len(beats) > 5
    assert job.id in doing
    assert service.store.workers() == []


def test_an_orphan_ends_and_gives_its_job_back(
    service: JobService, make_config: MakeConfig, fakes: SimpleNamespace
) -> None:
    parts = fakes.make_parts(loop=fakes.Loop(step_seconds=0.02))
    bench = Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))
    orphaned = threading.Event()
    worker = Worker(
        service.store,
        service.out,
        name="w",
        bench=bench,
        heartbeat_seconds=0.01,
        is_orphaned=orphaned.is_set,
    )
    job = service.submit(make_config(steps=1000))
    thread = threading.Thread(target=worker.run)
    thread.start()
    while service.get(job.id).step == 0:
        time.sleep(0.01)
    orphaned.set()
    thread.join(60)
    assert not thread.is_alive()
    released = service.get(job.id)
    assert (released.state, released.failures) == (State.QUEUED, 0)


def test_options_of_another_version_fail_with_what_to_do(
    service: JobService, make_config: MakeConfig, make_worker: MakeWorker
) -> None:
    job = service.submit(make_config())
    document = {**job.config, "no_such_option": 1}
    service.store.claim("w")
    service.store.report(job.id, "w", config=json.dumps(document))
    service.store.release(job.id, "w")
    make_worker().run_next()
    failed = service.get(job.id)
    assert (failed.state, failed.error) == (State.FAILED, "ConfigError")
    assert "submit the prompt again" in str(failed.reason)
