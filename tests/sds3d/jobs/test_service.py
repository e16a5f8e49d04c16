"""The door to the jobs: limits that hold whatever the interface, and what may be looked at."""

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sds3d.batch.run import _limits as batch_limits
from sds3d.config import GenerateConfig, MeshConfig, PresetName
from sds3d.errors import ConfigError, OutputError, TeacherError
from sds3d.jobs import limits as limits_module
from sds3d.jobs.errors import DiskLow, JobError, LimitExceeded, QueueFull, UnknownJob
from sds3d.jobs.limits import LimitsConfig, check_config
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State
from sds3d.optimize_config import FieldOptions, OptimizeConfig, RefineOptions
from sds3d.presets import PRESETS, generate_config
from sds3d.teachers import teacher_folder

MakeConfig = Callable[..., GenerateConfig]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"optimize": OptimizeConfig(steps=20_001)}, "--steps is 20001: .* at most 20000"),
        ({"optimize": OptimizeConfig(steps=19_999, extra_steps=2)}, "--steps is 20001"),
        ({"optimize": OptimizeConfig(resolutions=(32, 512))}, "--resolutions is 512"),
        ({"optimize": OptimizeConfig(views_per_step=9)}, "--views-per-step is 9"),
        ({"mesh": MeshConfig(max_faces=500_001)}, "--max-faces is 500001"),
        ({"mesh": MeshConfig(texture_size=8192)}, "--texture-size is 8192"),
        ({"mesh": MeshConfig(mesh_resolution=400)}, "--mesh-resolution is 400"),
        (
            {"optimize": OptimizeConfig(field=FieldOptions(n_levels=32, log2_table_size=24))},
            "--log2-table-size",
        ),
        (
            {"optimize": OptimizeConfig(field=FieldOptions(hidden_dim=1024))},
            "--hidden-dim is 1024: this place allows at most 256",
        ),
        (
            {"optimize": OptimizeConfig(occupancy_resolution=512)},
            "--occupancy-resolution is 512: this place allows at most 128",
        ),
        (
            {"optimize": OptimizeConfig(step_size=0.001)},
            "--step-size is 0.001: this place allows at least 0.01",
        ),
        ({"optimize": OptimizeConfig(perturbations=64)}, "--perturbations is 64: .* at most 16"),
        ({"optimize": OptimizeConfig(ode_steps=100)}, "--ode-steps is 100: .* at most 50"),
        ({"optimize": OptimizeConfig(lora_rank=1024)}, "--lora-rank is 1024: .* at most 64"),
        ({"teacher": "elsewhere"}, "--teacher is 'elsewhere': this place allows toybox"),
    ],
)
def test_what_is_too_large_is_refused_by_name(
    tmp_path: Path, make_config: MakeConfig, fields: dict[str, Any], named: str
) -> None:
    limits = LimitsConfig(min_free_bytes=0, teachers=("toybox",))
    with JobService(tmp_path, limits=limits) as service:
        with pytest.raises(LimitExceeded, match=named):
            service.submit(make_config(**fields))
        assert service.jobs() == []


@pytest.mark.parametrize("name", ["fast", "balanced", "quality"])
def test_no_measured_preset_is_too_large_for_the_app(name: PresetName) -> None:
    check_config(generate_config(name, prompt="a red mushroom"), LimitsConfig())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_to_the_limits_that_are_no_sizes(name: PresetName) -> None:
    """The recipes are long, and for large teachers; in all else they are usual."""
    large = LimitsConfig(
        max_steps=10**6,
        max_render_resolution=2048,
        max_field_values=2**40,
        max_mesh_resolution=1024,
    )
    check_config(generate_config(name, prompt="a red mushroom"), large)


def test_a_batch_is_limited_in_nothing_but_the_disk(make_config: MakeConfig) -> None:
    field = FieldOptions(n_levels=32, n_features=8, log2_table_size=24, hidden_dim=1024)
    most = OptimizeConfig(
        steps=10**6,
        views_per_step=64,
        resolutions=(1024,),
        resolution_milestones=(),
        perturbations=64,
        ode_steps=100,
        lora_rank=1024,
        step_size=0.001,
        occupancy_resolution=512,
        field=field,
    )
    mesh = MeshConfig(max_faces=10**7, texture_size=8192, mesh_resolution=1024)
    check_config(make_config(optimize=most, mesh=mesh), batch_limits())


def test_continuations_are_limited_too(
    tmp_path: Path, make_config: MakeConfig, make_worker: Any, service: JobService
) -> None:
    job = service.submit(make_config(steps=3))
    make_worker().run_next()
    with pytest.raises(LimitExceeded, match="--steps"):
        service.continue_(job.id, extra_steps=20_000)
    assert service.get(job.id).state is State.DONE


@pytest.mark.parametrize("extra", [1.5, 2.0, "5", -1, True, None, [3], "9" * 10_000])
def test_what_is_no_number_of_steps_is_refused_and_the_job_stays_as_it_was(
    make_config: MakeConfig, make_worker: Any, service: JobService, extra: Any
) -> None:
    job = service.submit(make_config(steps=3))
    make_worker().run_next()
    before = service.get(job.id)
    with pytest.raises(ConfigError, match=r"extra_steps is .*: give a whole number") as refused:
        service.continue_(job.id, extra)
    assert len(str(refused.value)) < 200
    assert service.get(job.id) == before
    service.continue_(job.id, 2)
    make_worker().run_next()
    assert (service.get(job.id).state, service.get(job.id).step) == (State.DONE, 5)


def test_a_full_queue_and_a_full_disk_are_named(
    tmp_path: Path, make_config: MakeConfig, make_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JobService(tmp_path, limits=LimitsConfig(max_queued=2, min_free_bytes=0)) as service:
        jobs = [service.submit(make_config(seed=seed)) for seed in range(2)]
        with pytest.raises(QueueFull, match="2 jobs are waiting"):
            service.submit(make_config(seed=2))
        service.cancel(jobs[0].id)
        service.submit(make_config(seed=2))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(limits_module.shutil, "disk_usage", lambda _: usage(100, 99, 2**20))
    with (
        JobService(tmp_path, limits=LimitsConfig(min_free_bytes=2**21)) as service,
        pytest.raises(DiskLow, match=r"only 1 MiB .* 2 MiB .* delete some runs"),
    ):
        service.submit(make_config())


def _no_room(*_: Any) -> None:
    raise DiskLow(2**20, 2**21)


def test_jobs_wait_for_a_disk_that_is_full_by_now(
    service: JobService, make_config: MakeConfig, make_worker: Any, monkeypatch: Any
) -> None:
    jobs = [service.submit(make_config(seed=seed)) for seed in range(3)]
    worker = make_worker()
    monkeypatch.setattr("sds3d.jobs.running.check_disk", _no_room)
    for _ in range(4):
        assert worker.run_next()
    waiting = [service.get(job.id) for job in jobs]
    assert {(job.state, job.failures, job.error) for job in waiting} == {(State.QUEUED, 0, None)}
    assert waiting[0].reason == (
        "waits for disk space: only 1 MiB are free for runs and 2 MiB are needed; "
        "delete some runs, and it goes on by itself"
    )
    # Who gives up waiting may.
    assert service.cancel(jobs[1].id).state is State.CANCELLED
    monkeypatch.undo()
    worker.run(until_idle=True)
    ends = [service.get(job.id) for job in jobs]
    assert [job.state for job in ends] == [State.DONE, State.CANCELLED, State.DONE]
    assert [job.reason for job in ends] == [None] * 3


def test_a_worker_looks_now_and_then_whether_the_disk_has_room_and_ends_when_told(
    service: JobService, make_config: MakeConfig, make_worker: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sds3d.jobs.worker.DISK_WAIT_SECONDS", 0.01)
    looks: list[bool] = []

    def check(*_: Any) -> None:
        looks.append(True)
        if len(looks) < 4:
            _no_room()

    monkeypatch.setattr("sds3d.jobs.running.check_disk", check)
    job = service.submit(make_config())
    make_worker().run(until_idle=True)
    assert len(looks) == 4
    assert service.get(job.id).state is State.DONE
    # Between two looks it claims nothing, however long that is, but hears that it is to end.
    monkeypatch.setattr("sds3d.jobs.worker.IDLE_SECONDS", 0.01)
    monkeypatch.setattr("sds3d.jobs.worker.DISK_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr("sds3d.jobs.running.check_disk", _no_room)
    jobs = [service.submit(make_config(seed=seed)) for seed in (1, 2)]
    asked: list[bool] = []
    make_worker().run(lambda: asked.append(True) or len(asked) > 10)
    assert [service.get(job.id).reason is None for job in jobs] == [False, True]
    assert {service.get(job.id).state for job in jobs} == {State.QUEUED}


def test_a_job_that_is_to_be_cancelled_does_not_wait_for_the_disk(
    service: JobService, make_config: MakeConfig, make_worker: Any, monkeypatch: Any
) -> None:
    job = service.submit(make_config())
    service.store.claim("gone")
    service.cancel(job.id)
    service.store.release(job.id, "gone")
    monkeypatch.setattr("sds3d.jobs.running.check_disk", _no_room)
    make_worker().run_next()
    assert service.get(job.id).state is State.CANCELLED


def test_what_cannot_be_is_refused_before_it_waits(
    tmp_path: Path, service: JobService, make_config: MakeConfig
) -> None:
    with pytest.raises(TeacherError, match="give toybox"):
        service.submit(make_config(teacher="nope"))
    second = OptimizeConfig(refine=RefineOptions(refine_steps=5, refine_teacher="nope"))
    with pytest.raises(TeacherError, match=r"for --refine-teacher: .* give toybox"):
        service.submit(make_config(optimize=second))
    assert service.jobs() == []
    with pytest.raises(OutputError):
        JobService(Path("/dev/null/x"))
    for ask in (service.get, service.stop, service.cancel, service.continue_, service.delete):
        with pytest.raises(UnknownJob):
            ask("nope")
    assert issubclass(UnknownJob, JobError)


def test_nothing_is_fetched_while_somebody_waits_for_the_answer(
    service: JobService, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "config" / "sds3d"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("allow_download = true\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(settings.parent))
    asked: list[bool] = []

    def snapshot_download(_: str, *, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refine = RefineOptions(refine_steps=5, refine_teacher="some/teacher")
    for fields in ({"teacher": "some/teacher"}, {"optimize": OptimizeConfig(refine=refine)}):
        with pytest.raises(TeacherError, match=r"not on this machine.*hf download some/teacher"):
            service.submit(make_config(**fields))
    assert asked == [True, True]
    # The command line waits for itself.
    with pytest.raises(TeacherError, match="no network here"):
        teacher_folder("some/teacher")
    assert asked == [True, True, False]


def test_a_job_writes_below_its_own_place_whatever_it_asks(
    tmp_path: Path, service: JobService, make_config: MakeConfig, make_worker: Any
) -> None:
    job = service.submit(dataclasses.replace(make_config(), out=tmp_path / "elsewhere"))
    make_worker().run_next()
    folder = service.folder(service.get(job.id))
    assert folder is not None
    assert folder.parent == service.out
    assert not (tmp_path / "elsewhere").exists()


def test_the_place_in_the_queue_counts_the_one_at_work(
    service: JobService, make_config: MakeConfig
) -> None:
    jobs = [service.submit(make_config(seed=seed)) for seed in range(3)]
    service.store.claim("w")
    assert [service.place_in_queue(job) for job in jobs[1:]] == [1, 2]
    assert service.folder(jobs[1]) is None
    assert service.picture(jobs[1]) is None
    assert service.result(jobs[1]) is None
    assert service.follow(jobs[1]).events == []
