"""Teachers given by their folders: which can be distilled, and what a student remembers of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from core.teachers.toybox import weights_sha256
from sds3d import cli
from sds3d.assets import shipped
from sds3d.distill import toybox_run
from sds3d.distill.digits import make_network, save_module
from sds3d.distill.measure import draw
from sds3d.distill.run import DistillConfig, distill
from sds3d.distill.students import load_student
from sds3d.distill.teacher_folders import folder_of_teacher
from sds3d.errors import TeacherError


def digits_teacher(folder: Path, seed: int) -> Path:
    """As scripts/train_digits_teacher.py writes one, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_module(make_network(), folder / "teacher.safetensors")
    shutil.copy(shipped("digits") / "classifier.safetensors", folder)
    return folder


def config(teacher: Path, out: Path) -> DistillConfig:
    return DistillConfig(
        method="add", teacher=str(teacher), steps=2, batch=8, samples=100, nfe=2, out=out
    )


def test_a_student_of_a_digits_folder_is_of_that_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = digits_teacher(tmp_path / "mine", seed=0)
    folder = distill(config(teacher, tmp_path / "out"), lambda _: None, lambda: False)
    assert folder.name.startswith("add-digits-mine-")
    method, card, ground = load_student(folder)
    assert (card.ground, card.teacher_folder) == ("digits", str(teacher))
    # The ground's teacher is the folder's, not the one that ships.
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(5, 64, generator=generator), torch.full((5,), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = make_network()(x, t)
    torch.testing.assert_close(ground.ground.teacher(x, t).x0, wanted, atol=2e-3, rtol=0)
    kept = json.loads((folder / "student.json").read_text())["measured"]["frechet"]
    states, _ = draw(method, ground, 2, 100, seed=1)
    assert states[-1].shape == (100, 64)
    assert kept > 0
    grid = tmp_path / "grid.png"
    assert cli.main(["sample", str(folder), "--samples", "20", "--out", str(grid)]) == 0
    assert grid.is_file()

    digits_teacher(teacher, seed=1)
    assert config(teacher, tmp_path / "out").folder != folder
    with pytest.raises(TeacherError, match="is not that of"):
        load_student(folder)
    shutil.rmtree(teacher)
    capsys.readouterr()
    assert cli.main(["sample", str(folder), "--out", str(grid)]) == 2
    error = capsys.readouterr().err
    assert "no longer in" in error
    assert len(error.strip().splitlines()) == 1


def test_a_toybox_folder_is_distilled_as_the_embedded_teacher_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def only_told(given: DistillConfig, *_: object, base: Path) -> Path:
        asked.append(base)
        return given.folder

    monkeypatch.setattr(toybox_run, "distill_toybox", only_told)
    own = tmp_path / "own"
    shutil.copytree(shipped("toybox"), own)
    for teacher, base in [(str(own), own), ("toybox", shipped("toybox"))]:
        given = DistillConfig(method="guidance", teacher=teacher, nfe=8, out=tmp_path / "out")
        made = distill(given, lambda _: None, lambda: False)
        assert asked.pop() == base
        assert ("own" in made.name) == (teacher != "toybox")
    found = folder_of_teacher(str(own))
    assert found is not None
    assert (found.ground, found.sha256) == ("toybox", weights_sha256(own))


def index(kind: object) -> str:
    return json.dumps({"_class_name": kind})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model_index.json": index("StableDiffusionPipeline")}, "holds a StableDiffusionPipeline"),
        ({"model_index.json": index("GuidedToyboxTeacher")}, "holds a GuidedToyboxTeacher"),
        ({"model_index.json": "{"}, "model_index.json is damaged"),
        ({"model_index.json": "[]"}, "model_index.json is damaged"),
        ({"model_index.json": index("ToyboxTeacher")}, "cannot be read"),
        ({"teacher.safetensors": ""}, "neither model_index.json nor classifier.safetensors"),
        ({}, "neither model_index.json nor teacher.safetensors and classifier.safetensors"),
    ],
)
def test_any_other_folder_is_refused_in_one_line_with_what_to_give(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    words = ["distill", "kd", "--teacher", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "give the folder of" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_damaged_weights_of_a_digits_folder_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = digits_teacher(tmp_path / "mine", seed=0)
    path = teacher / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    words = ["distill", "kd", "--teacher", str(teacher), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "teacher.safetensors" in error
    assert len(error.strip().splitlines()) == 1
