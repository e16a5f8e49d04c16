"""Checkpoints and run folders under faults: damage is detected and nothing whole is ever lost."""

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sds3d import atomic
from sds3d.config import GenerateConfig
from sds3d.errors import CorruptCheckpoint, OutputError, RunError, RunLocked
from sds3d.events import Event, Stage, Step, Warning
from sds3d.runs import CheckpointFile, RunFolder

WEIGHTS = "a" * 64


def _state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "weights": torch.randn(5, 7, generator=generator),
        "double": torch.full((3,), step, dtype=torch.float64),
        "generator": generator.get_state(),
        "flag": torch.tensor(True),
        "transposed": torch.arange(6.0).reshape(2, 3).T + step,
    }
    return tensors, {"step": step, "rate": 0.1 * step, "names": ["a", "ü"]}


def _assert_is(loaded: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, step: int) -> None:
    assert loaded is not None
    tensors, meta = _state(step)
    assert loaded[1] == meta
    assert set(loaded[0]) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[0][name].dtype == tensor.dtype
        assert torch.equal(loaded[0][name], tensor), name


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"checkpoint-*.{suffix}"))


# --- checkpoints -----------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_and_only_two_are_kept(tmp_path: Path) -> None:
    checkpoint = CheckpointFile(tmp_path)
    assert checkpoint.load() is None
    assert not checkpoint.exists()
    for step in range(1, 6):
        checkpoint.save(*_state(step))
        _assert_is(checkpoint.load(), step)
    assert checkpoint.exists()
    assert len(_files(tmp_path, "json")) == len(_files(tmp_path, "safetensors")) == 2
    checkpoint.clear()
    assert checkpoint.load() is None
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_saved_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    CheckpointFile(tmp_path).save({"whole": base, "part": base[2:5]}, {})
    loaded = CheckpointFile(tmp_path).load()
    assert loaded is not None
    assert torch.equal(loaded[0]["whole"], base)
    assert torch.equal(loaded[0]["part"], base[2:5])


def test_numbers_that_json_would_change_are_refused(tmp_path: Path) -> None:
    checkpoint = CheckpointFile(tmp_path)
    checkpoint.save(*_state(1))
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save({}, {"loss": float("nan")})
    _assert_is(checkpoint.load(), 1)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_every_truncation_is_detected(tmp_path: Path, suffix: str) -> None:
    CheckpointFile(tmp_path).save(*_state(1))
    (path,) = _files(tmp_path, suffix)
    whole = path.read_bytes()
    lengths = range(len(whole)) if suffix == "json" else range(0, len(whole), 41)
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpoint, match="--overwrite"):
            CheckpointFile(tmp_path).load()
    path.write_bytes(whole)
    _assert_is(CheckpointFile(tmp_path).load(), 1)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path, suffix: str) -> None:
    CheckpointFile(tmp_path).save(*_state(1))
    (path,) = _files(tmp_path, suffix)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            CheckpointFile(tmp_path).load()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove tensors", "foreign json"])
def test_the_one_before_is_taken_with_a_warning_and_then_guarded(
    tmp_path: Path, damage: str, heard: list[Event]
) -> None:
    checkpoint = CheckpointFile(tmp_path, heard.append)
    checkpoint.save(*_state(1))
    checkpoint.save(*_state(2))
    newest = _files(tmp_path, "safetensors")[-1]
    if damage == "flip":
        newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    elif damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:10])
    elif damage == "remove tensors":
        newest.unlink()
    else:
        newest.with_suffix(".json").write_text("[1, 2]")
    _assert_is(checkpoint.load(), 1)
    assert len(heard) == 1
    assert isinstance(heard[0], Warning)
    assert newest.stem in heard[0].text
    # A save that fails now must still leave the whole one, not the damaged one.
    checkpoint.save(*_state(3))
    third = _files(tmp_path, "safetensors")[-1]
    third.write_bytes(b"")
    _assert_is(checkpoint.load(), 1)


def test_a_save_that_fails_at_any_system_call_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the k-th write, sync or rename, for every k that a save has."""
    checkpoint = CheckpointFile(tmp_path)
    checkpoint.save(*_state(1))
    calls, failing = 0, 0

    def faulty(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return call

    names = ("open", "write", "fsync", "replace")
    fake = SimpleNamespace(**{**vars(os), **{name: faulty(getattr(os, name)) for name in names}})
    refused = 0
    for failing in range(1, 40):
        calls = 0
        monkeypatch.setattr(atomic, "os", fake)
        try:
            checkpoint.save(*_state(2))
        except OutputError as error:
            refused += 1
            assert "no space left" in str(error)  # noqa: PT017  # the loop goes on
        finally:
            monkeypatch.undo()
        loaded = checkpoint.load()
        assert loaded is not None
        _assert_is(loaded, loaded[1]["step"])
        assert len(list(tmp_path.glob(".checkpoint-*"))) == 0
        if calls < failing:
            break
        checkpoint.clear()
        checkpoint.save(*_state(1))
    assert refused >= 6
    _assert_is(checkpoint.load(), 2)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from sds3d.runs import CheckpointFile

def state(step):
    return {"x": torch.full((20000,), float(step))}, {"step": step}

folder, draw = Path(sys.argv[1]), random.Random(0)
lost, seen, inside = 0, set(), 0
CheckpointFile(folder).save(*state(0))
for _ in range(int(sys.argv[2])):
    start = CheckpointFile(folder).load()[1]["step"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoint = CheckpointFile(folder)
        for step in range(start + 1, start + 10000):
            checkpoint.save(*state(step))
            os.write(writer, b".")
    os.close(writer)
    os.read(reader, 1)
    time.sleep(draw.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = start + 1
    while chunk := os.read(reader, 65536):
        done += len(chunk)
    os.close(reader)
    inside += any(folder.glob(".checkpoint-*")) or len(list(folder.glob("*.safetensors"))) != 2
    tensors, meta = CheckpointFile(folder).load()
    assert torch.equal(tensors["x"], state(meta["step"])[0]["x"])
    # Saved and reported means kept; one more may have been saved and not yet reported.
    assert done <= meta["step"] <= done + 1, (done, meta)
    seen.add(meta["step"])
print(len(seen), inside)
"""


def test_kill_9_at_random_points_never_loses_a_reported_save(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    kills = 100
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    states, inside = map(int, run.stdout.split())
    assert states == kills
    assert inside > 0, "no kill fell inside a save: the test shows nothing"


# --- run folders -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(GenerateConfig(prompt="a red mushroom", out=tmp_path), WEIGHTS)
    folder.start()
    return folder


def _publish(run: RunFolder, files: dict[str, bytes]) -> dict[str, Any]:
    with run.staging() as staging:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        return run.publish(staging, {"config": {}, "seconds": {}})


def test_a_run_is_done_when_its_result_names_whole_files_and_not_before(run: RunFolder) -> None:
    assert run.verify() == ["result.json is missing or damaged"]
    with run.staging() as staging:
        (staging / "mesh.glb").write_bytes(b"mesh")
    assert run.verify() != []
    assert not (run.path / "mesh.glb").exists()
    result = _publish(run, {"mesh.glb": b"mesh", "preview.png": b"picture"})
    assert run.verify() == []
    assert run.result() == result
    assert set(result["files"]) == {"config.json", "mesh.glb", "preview.png"}
    (run.path / "mesh.glb").write_bytes(b"mash")
    assert run.verify() == ["mesh.glb was changed"]
    (run.path / "mesh.glb").unlink()
    assert run.verify() == ["mesh.glb is missing"]
    (run.path / "result.json").write_bytes((run.path / "result.json").read_bytes()[:-9])
    assert run.verify() == ["result.json is missing or damaged"]


def test_a_new_result_replaces_the_old_files_and_leaves_no_others(run: RunFolder) -> None:
    _publish(run, {"mesh.glb": b"1", "mesh.obj": b"1", "mesh-1.mtl": b"1"})
    (run.path / "notes.txt").write_text("the user's own")
    _publish(run, {"mesh.glb": b"2"})
    assert run.verify() == []
    assert (run.path / "mesh.glb").read_bytes() == b"2"
    names = {p.name for p in run.path.iterdir() if not p.name.startswith(".")}
    assert names == {"config.json", "mesh.glb", "notes.txt", "result.json"}


def test_a_result_that_names_files_elsewhere_deletes_nothing_there(run: RunFolder) -> None:
    _publish(run, {"mesh.glb": b"1"})
    outside = run.path.parent / "precious"
    outside.write_text("keep")
    result = json.loads((run.path / "result.json").read_text())
    result["files"] |= {"../precious": "0", str(outside): "0", ".lock": "0"}
    (run.path / "result.json").write_text(json.dumps(result))
    run.start(overwrite=True)
    assert outside.read_text() == "keep"
    assert not (run.path / "mesh.glb").exists()


def test_a_failure_while_writing_leaves_no_half_result(run: RunFolder) -> None:
    _publish(run, {"mesh.glb": b"1"})

    def crash(staging: Path) -> None:
        (staging / "mesh.glb").write_bytes(b"half")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"), run.staging() as staging:
        crash(staging)
    assert run.verify() == []
    assert (run.path / "mesh.glb").read_bytes() == b"1"
    with pytest.raises(OutputError, match="no space"), run.staging() as staging:
        raise OSError(errno.ENOSPC, "No space left on device", str(staging / "mesh.glb"))
    with pytest.raises(FileNotFoundError), run.staging():
        raise FileNotFoundError(errno.ENOENT, "No such file", "/some/other/program")
    assert not list(run.path.glob(".files*"))


def test_an_existing_run_opens_with_its_options_wherever_it_was_moved(
    run: RunFolder, tmp_path: Path
) -> None:
    opened = RunFolder.open(run.path)
    assert opened.config == run.config
    assert (opened.key, opened.weights_sha256) == (run.key, WEIGHTS)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run.path.rename(moved)
    opened = RunFolder.open(moved)
    assert opened.config.out == moved.parent
    assert opened.key == run.key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "changed by hand"),
        (lambda text: text.replace('"seed": 0', '"seed": -1'), "seed"),
        (lambda text: text.replace('"seed": 0', '"sead": 0'), "sead"),
        (lambda text: text.replace(WEIGHTS, "b" * 64), "changed by hand"),
        (lambda text: text.replace("a red mushroom", ""), "empty"),
        (lambda _: "[]", "damaged"),
        (lambda _: "\0", "damaged"),
    ],
)
def test_a_changed_config_is_refused_in_one_line(
    run: RunFolder, change: Callable[[str], str], reason: str
) -> None:
    path = run.path / "config.json"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(RunError, match=reason) as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run's folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunError, match="not a run's folder"):
        RunFolder.open(tmp_path / "missing")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = GenerateConfig(prompt="p", out=tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="--out"):
        RunFolder.create(config, WEIGHTS)


def test_a_nearly_full_disk_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="free at least"):
        atomic.make_writable_folder(tmp_path, min_free_bytes=2**60)
    atomic.make_writable_folder(tmp_path, min_free_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_two_holders_of_one_folder_are_refused_until_the_first_lets_go(run: RunFolder) -> None:
    other = RunFolder.open(run.path)
    with (
        run.locked(),
        pytest.raises(RunLocked, match="another process"),
        other.locked(),
    ):
        pass
    with other.locked():
        pass


def test_the_log_keeps_every_event_but_steps_and_all_are_passed_on(
    tmp_path: Path, heard: list[Event]
) -> None:
    config = GenerateConfig(prompt="p", out=tmp_path)
    run = RunFolder.create(config, WEIGHTS, heard.append)
    step = Step(step=1, steps=2, timestep=0.5, opacity=0.5, step_seconds=0.1, eta_seconds=0.1)
    events: list[Event] = [Stage("mesh"), step, Warning("line\nbreak")]
    for event in events:
        run.emit(event)
    assert heard == events
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["stage", "warning"]


def test_a_cut_line_of_the_log_does_not_spoil_the_next(tmp_path: Path) -> None:
    run = RunFolder.create(GenerateConfig(prompt="p", out=tmp_path), WEIGHTS)
    run.emit(Stage("teacher"))
    log = run.path / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "war')
    run.emit(Stage("optimize"))
    run.emit(Stage("mesh"))
    lines = log.read_text().splitlines()
    assert lines[1] == '{"event": "war'
    names = [json.loads(line)["name"] for line in lines[:1] + lines[2:]]
    assert names == ["teacher", "optimize", "mesh"]
