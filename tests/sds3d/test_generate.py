"""The pipeline with a loop and an export that take milliseconds: its order, and its faults."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sds3d.atomic import sha256_file
from sds3d.config import GenerateConfig, MeshConfig
from sds3d.config_json import folder_name, from_dict
from sds3d.errors import (
    ConfigError,
    CorruptCheckpoint,
    Interrupted,
    OutputError,
    PromptError,
    RunError,
    RunLocked,
    TeacherError,
    TooLittleMemory,
)
from sds3d.events import Event, Health, Result, Stage, Step, Warning
from sds3d.generate import Generated, Parts, export_run, generate, resume
from sds3d.optimize_config import OptimizeConfig
from sds3d.reproduce import ReproduceConfig, differences, reproduce
from sds3d.runs import RunFolder

STEPS = 10


@pytest.fixture
def config(tmp_path: Path) -> GenerateConfig:
    return GenerateConfig(
        prompt="a red mushroom",
        device="cpu",
        out=tmp_path / "out",
        optimize=OptimizeConfig(steps=STEPS),
        mesh=MeshConfig(formats=("glb", "obj"), max_faces=1000),
    )


def _stop_after(steps: int, heard: list[Event]) -> Callable[[], bool]:
    return lambda: sum(isinstance(event, Step) for event in heard) >= steps


def _hashes(generated: Generated) -> dict[str, str]:
    return {k: v for k, v in generated.result["files"].items() if k != "config.json"}


def _stages(heard: list[Event]) -> list[str]:
    return [event.name for event in heard if isinstance(event, Stage)]


def test_a_run_makes_its_folder_and_says_what_it_did(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    made = generate(config, on_event=heard.append, parts=fakes.make_parts())
    assert made.folder == config.out / folder_name(config, "a" * 64)
    result = json.loads((made.folder / "result.json").read_text())
    assert result == made.result
    assert _stages(heard) == ["teacher", "optimize", "mesh", "export"]
    assert heard[-1] == Result(folder=made.folder, result=result)
    assert from_dict(result["config"]) == config
    assert result["prompt"] == "a red mushroom"
    assert (result["seed"], result["preset"], result["steps"]) == (0, "balanced", STEPS)
    assert result["teacher"] == {"name": "toybox", "weights_sha256": "a" * 64}
    assert result["health"] == ["a little fog"]
    assert result["iso_iou"] == 0.9
    assert result["mesh"] == {"faces": 1000}
    assert result["peak_memory_bytes"]["process"] > 10 * 2**20
    stages = {"teacher", "optimize", "mesh", "export"}
    assert set(result["seconds"]) == {*stages, "total"}
    total = sum(result["seconds"][stage] for stage in stages)
    assert result["seconds"]["total"] == pytest.approx(total)
    assert set(result["files"]) == {"config.json", "mesh.glb", "mesh.obj", "preview.png"}
    for name, digest in result["files"].items():
        assert sha256_file(made.folder / name) == digest
    assert RunFolder.open(made.folder).verify() == []


def test_the_same_request_is_not_computed_twice(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    loop = fakes.Loop()
    parts = fakes.make_parts(loop=loop)
    first = generate(config, parts=parts)
    assert generate(config, parts=parts) == first
    assert resume(first.folder, parts=parts).result == first.result
    assert loop.steps_done == STEPS
    again = generate(config, parts=parts, overwrite=True)
    assert loop.steps_done == 2 * STEPS
    assert _hashes(again) == _hashes(first)


def test_another_seed_is_another_folder_and_another_result(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    first = generate(config, parts=fakes.make_parts())
    other = generate(dataclasses.replace(config, seed=1), parts=fakes.make_parts())
    assert other.folder != first.folder
    assert _hashes(other)["mesh.glb"] != _hashes(first)["mesh.glb"]


@pytest.mark.parametrize("stop_at", [1, 3, 7, STEPS - 1])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event], stop_at: int, tmp_path: Path
) -> None:
    whole = generate(dataclasses.replace(config, out=tmp_path / "x"), parts=fakes.make_parts())
    with pytest.raises(Interrupted, match="--resume") as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(stop_at, heard),
            parts=fakes.make_parts(),
        )
    folder = stopped.value.folder
    assert sum(isinstance(event, Step) for event in heard) == stop_at
    assert not (folder / "result.json").exists()
    loop = fakes.Loop()
    done = resume(folder, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == STEPS - stop_at
    assert done.folder == folder
    assert _hashes(done) == _hashes(whole)


def test_the_same_command_continues_an_interrupted_run(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    with pytest.raises(Interrupted):
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(4, heard),
            parts=fakes.make_parts(),
        )
    loop = fakes.Loop()
    generate(config, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == STEPS - 4


def test_a_stop_during_the_export_keeps_the_finished_field(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    def in_the_mesh() -> bool:
        return any(isinstance(event, Stage) and event.name == "mesh" for event in heard)

    with pytest.raises(Interrupted) as stopped:
        generate(config, on_event=heard.append, should_stop=in_the_mesh, parts=fakes.make_parts())
    loop = fakes.Loop()
    done = resume(stopped.value.folder, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == 0
    assert RunFolder.open(done.folder).verify() == []


def test_a_second_ctrl_c_at_any_time_is_an_interruption_too(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        generate(config, parts=fakes.make_parts(write_files=interrupted))
    assert not list(stopped.value.folder.glob(".files*"))
    resume(stopped.value.folder, parts=fakes.make_parts())


@pytest.mark.parametrize("finish_at", [1, 4])
def test_an_early_finish_exports_what_there_is_and_the_same_call_goes_on(
    config: GenerateConfig,
    fakes: SimpleNamespace,
    heard: list[Event],
    finish_at: int,
    tmp_path: Path,
) -> None:
    whole = generate(dataclasses.replace(config, out=tmp_path / "x"), parts=fakes.make_parts())
    early = generate(
        config,
        on_event=heard.append,
        should_finish=_stop_after(finish_at, heard),
        parts=fakes.make_parts(),
    )
    assert early.result["steps"] == finish_at
    assert from_dict(early.result["config"]) == config
    assert RunFolder.open(early.folder).verify() == []
    assert _hashes(early) != _hashes(whole)
    # What is recorded is made again, and ends at the same step.
    warnings: list[Event] = []
    again = reproduce(
        ReproduceConfig(result=early.folder / "result.json", out=tmp_path / "again"),
        on_event=warnings.append,
        parts=fakes.make_parts(),
    )
    assert again.result["steps"] == finish_at
    assert _hashes(again) == _hashes(early)
    assert not [event for event in warnings if isinstance(event, Warning)]
    for go_on in (lambda parts: resume(early.folder, parts=parts), generate):
        loop = fakes.Loop()
        parts = fakes.make_parts(loop=loop)
        done = go_on(parts) if go_on is not generate else generate(config, parts=parts)
        assert _hashes(done) == _hashes(whole)
        assert loop.steps_done == (0 if go_on is generate else STEPS - finish_at)


def test_a_stop_wins_over_an_early_finish(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    ask = _stop_after(3, heard)
    with pytest.raises(Interrupted):
        generate(
            config,
            on_event=heard.append,
            should_stop=ask,
            should_finish=ask,
            parts=fakes.make_parts(),
        )


def test_a_crash_in_the_export_leaves_a_run_that_resumes(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    def crash(_optimized: Any, _config: Any, folder: Path, _on_event: Any) -> Any:
        (folder / "mesh.glb").write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(config, parts=fakes.make_parts(write_files=crash))
    (folder,) = config.out.iterdir()
    assert not (folder / "mesh.glb").exists()
    assert not (folder / "result.json").exists()
    loop = fakes.Loop()
    resume(folder, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == 0


def test_a_changed_or_missing_file_is_made_again_from_the_checkpoint(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    first = generate(config, parts=fakes.make_parts())
    (first.folder / "mesh.glb").unlink()
    (first.folder / "mesh.obj").write_bytes(b"edited")
    loop = fakes.Loop()
    again = generate(config, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == 0
    assert _hashes(again) == _hashes(first)
    assert again.result["health"] == first.result["health"]
    assert again.result["seconds"]["optimize"] == first.result["seconds"]["optimize"]


def test_export_replaces_the_files_without_optimising(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    first = generate(config, parts=fakes.make_parts())
    loop = fakes.Loop()
    parts = fakes.make_parts(loop=loop)
    made = export_run(
        first.folder,
        formats=("glb",),
        max_faces=500,
        texture_size=0,
        on_event=heard.append,
        parts=parts,
    )
    assert loop.steps_done == 0
    assert made.result["config"]["mesh"]["max_faces"] == 500
    assert made.result["config"]["mesh"]["texture_size"] == 0
    assert made.result["mesh"] == {"faces": 500}
    assert set(made.result["files"]) == {"config.json", "mesh.glb", "preview.png"}
    assert not (first.folder / "mesh.obj").exists()
    assert made.result["seconds"]["optimize"] == first.result["seconds"]["optimize"]
    assert RunFolder.open(first.folder).verify() == []
    # The original request gets its own files back, again without optimising.
    assert _hashes(generate(config, parts=parts)) == _hashes(first)
    assert loop.steps_done == 0


def test_export_needs_a_finished_run(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="not a run's folder"):
        export_run(tmp_path, parts=fakes.make_parts())
    with pytest.raises(Interrupted) as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(2, heard),
            parts=fakes.make_parts(),
        )
    with pytest.raises(RunError, match="not finished"):
        export_run(stopped.value.folder, parts=fakes.make_parts())
    with pytest.raises(ConfigError, match="--max-faces"):
        export_run(stopped.value.folder, max_faces=0, parts=fakes.make_parts())


def test_what_the_teacher_does_not_know_is_said_before_anything_is_spent(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    hamburger = dataclasses.replace(config, prompt="a hamburger")
    with pytest.raises(PromptError, match="nearest: mushroom"):
        generate(hamburger, parts=fakes.make_parts())
    assert list(config.out.iterdir()) == []
    purplish = dataclasses.replace(config, prompt="a purplish mushroom")
    generate(purplish, on_event=heard.append, parts=fakes.make_parts())
    assert Warning("never seen 'purplish'") in heard


def test_a_run_does_not_go_on_with_another_teacher(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    with pytest.raises(Interrupted) as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(2, heard),
            parts=fakes.make_parts(),
        )
    other = fakes.make_parts(teacher=fakes.Teacher(weights_sha256="b" * 64))
    with pytest.raises(TeacherError, match="not those"):
        resume(stopped.value.folder, parts=other)
    assert generate(config, parts=other).folder != stopped.value.folder


def test_a_run_goes_on_with_images_of_its_size_and_says_where_the_dtype_is_another(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    def parts(**held: Any) -> Parts:
        teacher = fakes.Teacher()
        for name, value in held.items():
            setattr(teacher, name, value)
        return fakes.make_parts(teacher=teacher)

    with pytest.raises(Interrupted) as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(2, heard),
            parts=parts(image_size=512, dtype=torch.float16),
        )
    folder = stopped.value.folder
    for go_on in (
        lambda: resume(folder, parts=parts(image_size=256, dtype=torch.float16)),
        lambda: generate(config, parts=parts(image_size=256, dtype=torch.float16)),
    ):
        with pytest.raises(TeacherError, match=r"image_size = 512 under \[teacher\].*--overwrite"):
            go_on()
    heard.clear()
    done = resume(folder, on_event=heard.append, parts=parts(image_size=512, dtype=torch.float32))
    (warning,) = [event.text for event in heard if isinstance(event, Warning)]
    assert "float16, which are now in float32" in warning
    held = {"image_size": 512, "dtype": "float32"}
    assert done.result["teacher"] == {"name": "toybox", "weights_sha256": "a" * 64, **held}
    anew = generate(config, overwrite=True, parts=parts(image_size=256))
    assert anew.result["teacher"]["image_size"] == 256


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_too_little_memory_is_said_with_how_to_go_on(
    device: str, config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    def exhausted(*_: Any, **__: Any) -> Any:
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        torch.empty(2**46)  # torch's own refusal

    parts = fakes.make_parts()
    with pytest.raises(TooLittleMemory) as caught:
        generate(config, parts=dataclasses.replace(parts, optimize=exhausted))
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert f"sds3d generate --resume {caught.value.folder}" in text
    for remedy in ("--views-per-step", "image_size", "checkpoint_vae", "--preset"):
        assert remedy in text
    assert resume(caught.value.folder, parts=parts).result["steps"] == STEPS


def test_damaged_checkpoints_are_named_and_overwrite_starts_anew(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    with pytest.raises(Interrupted) as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(4, heard),
            parts=fakes.make_parts(),
        )
    folder = stopped.value.folder
    for path in folder.glob("checkpoint-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match="--overwrite"):
        resume(folder, parts=fakes.make_parts())
    with pytest.raises(CorruptCheckpoint):
        generate(config, parts=fakes.make_parts())
    generate(config, overwrite=True, parts=fakes.make_parts())
    assert RunFolder.open(folder).verify() == []


def test_a_folder_in_use_is_refused(config: GenerateConfig, fakes: SimpleNamespace) -> None:
    run = RunFolder.create(config, "a" * 64)
    loop = fakes.Loop()
    with run.locked(), pytest.raises(RunLocked):
        generate(config, parts=fakes.make_parts(loop=loop))
    assert loop.steps_done == 0


def test_an_output_that_cannot_be_written_is_refused_before_the_teacher_is_loaded(
    config: GenerateConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    def fail(*_: Any) -> Any:
        raise AssertionError("loaded")

    unreachable: Any = fail
    parts = Parts(load_teacher=unreachable, optimize=unreachable, write_files=unreachable)
    with pytest.raises(OutputError, match="--out"):
        generate(dataclasses.replace(config, out=tmp_path / "file"), parts=parts)


def test_a_run_that_moves_to_another_device_says_so(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event]
) -> None:
    with pytest.raises(Interrupted) as stopped:
        generate(
            config,
            on_event=heard.append,
            should_stop=_stop_after(2, heard),
            parts=fakes.make_parts(),
        )
    folder = stopped.value.folder
    moved = RunFolder.create(dataclasses.replace(config, device="cuda"), "a" * 64)
    moved.start()
    for path in folder.glob("checkpoint-*"):
        (moved.path / path.name).write_bytes(path.read_bytes())
    heard.clear()
    done = resume(moved.path, device="cpu", on_event=heard.append, parts=fakes.make_parts())
    assert any("began on cuda" in event.text for event in heard if isinstance(event, Warning))
    assert done.result["machine"]["device"] == "cpu"


# --- reproduce -------------------------------------------------------------------------------


def test_reproducing_on_the_same_machine_gives_the_same_files(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event], tmp_path: Path
) -> None:
    first = generate(config, parts=fakes.make_parts())
    made = export_run(first.folder, max_faces=500, parts=fakes.make_parts())
    loop = fakes.Loop()
    again = reproduce(
        ReproduceConfig(result=made.folder / "result.json", out=tmp_path / "again"),
        on_event=heard.append,
        parts=fakes.make_parts(loop=loop),
    )
    assert loop.steps_done == STEPS
    assert again.folder.parent == tmp_path / "again"
    assert _hashes(again) == _hashes(made)
    assert not [event for event in heard if isinstance(event, (Warning, Health))]


def test_a_difference_is_named_with_what_may_have_caused_it(
    config: GenerateConfig, fakes: SimpleNamespace, heard: list[Event], tmp_path: Path
) -> None:
    first = generate(config, parts=fakes.make_parts())
    path = first.folder / "result.json"
    result = json.loads(path.read_text())
    result["files"]["mesh.glb"] = "0" * 64
    result["version"] = "0.0.1"
    path.write_text(json.dumps(result))
    reproduce(
        ReproduceConfig(result=path, out=tmp_path / "again"),
        on_event=heard.append,
        parts=fakes.make_parts(),
    )
    texts = [event.text for event in heard if isinstance(event, Warning)]
    assert "mesh.glb differs from the recorded one" in texts
    assert any(text.startswith("version was 0.0.1") for text in texts)
    assert not any("mesh.obj" in text for text in texts)


def test_files_that_only_one_result_has_are_named() -> None:
    recorded = {"files": {"a": "1", "b": "2"}}
    assert differences(recorded, {"files": {"a": "1", "b": "2"}}) == []
    assert differences(recorded, {"files": {"a": "1", "c": "3"}}) == ["b was not made", "c is new"]


def test_another_second_teacher_is_named_as_what_may_have_caused_a_difference() -> None:
    def result(sha256: str, file: str) -> dict[str, Any]:
        return {"files": {"a": file}, "refine": {"teacher": {"weights_sha256": sha256}}}

    assert differences(result("x", "1"), result("x", "2")) == ["a differs from the recorded one"]
    _, cause = differences(result("x", "1"), result("y", "2"))
    assert cause.startswith("the second stage's teacher was {'weights_sha256': 'x'} and is {")
    (*_, gone) = differences(result("x", "1"), {"files": {"a": "2"}, "refine": None})
    assert gone.endswith("and is None")


def test_reproducing_never_writes_over_the_original(
    config: GenerateConfig, fakes: SimpleNamespace
) -> None:
    first = generate(config, parts=fakes.make_parts())
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    with pytest.raises(RunError, match="--out"):
        reproduce(ReproduceConfig(result=first.folder / "result.json", out=config.out))
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == before


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", "\0", '{"config": {}, "files": 3}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=r"result\.json"):
        reproduce(ReproduceConfig(result=path, out=tmp_path / "out"))
