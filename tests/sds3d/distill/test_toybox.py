"""The embedded teacher as a ground: what its students are shown and told; training, tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance
from core.distillation.field.guidance import GuidanceDistillation
from core.distillation.method import Distillation
from core.prediction import Parametrisation
from core.schedule import FlowSchedule
from core.teachers.toybox import ToyboxTeacher, weights_sha256
from core.teachers.toybox_guided import GuidedToyboxTeacher, ToyboxStudent
from core.teachers.toybox_network import make_network, make_tokenizer, save_network
from sds3d import cli, teachers
from sds3d.distill import toybox, toybox_run
from sds3d.distill.run import DistillConfig
from sds3d.distill.toybox import (
    Pictures,
    guidance_error,
    imagined,
    random_prompt,
    student_and_teacher,
    toybox_ground,
)
from sds3d.distill.toybox_run import distill_toybox
from sds3d.errors import Interrupted, TeacherError
from sds3d.optimize_config import OptimizeConfig
from sds3d.views import ring

WORDS = ["a", "red", "blue", "mushroom", "toadstool", "car", "on", "with", "cap", "cube"]
VOCABULARY: dict[str, object] = {
    "kinds": {"mushroom": ["mushroom", "toadstool"], "car": ["car"]},
    "colors": {"red": ["red"], "blue": ["blue"]},
    "parts": {"mushroom": ["cap"], "car": []},
    "supports": ["cube"],
}
SMALL = {"steps": 4, "batch": 2, "samples": 100, "seed": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder with random weights that draw and listen."""
    folder = tmp_path_factory.mktemp("distil") / "toybox"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network(len(WORDS) + 4)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.1)
    save_network(network, make_tokenizer(WORDS), VOCABULARY, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(base: Path) -> ToyboxTeacher:
    return ToyboxTeacher.load(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def pictures(teacher: ToyboxTeacher) -> Pictures:
    return imagined(teacher, 32, seed=0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is measured and drawn."""
    monkeypatch.setattr(toybox_run, "MEASURED", 4)
    monkeypatch.setattr(toybox_run, "DRAWN", 2)
    monkeypatch.setattr(toybox, "TEACHER_STEPS", 2)


# --- what is shown ---------------------------------------------------------------------------


def test_a_picture_covers_the_ground_where_it_is_opaque() -> None:
    rgba = torch.zeros(1, 64, 64, 4, dtype=torch.uint8)
    rgba[:, :32] = torch.tensor([255, 51, 0, 255], dtype=torch.uint8)
    text = torch.arange(3.0).reshape(1, 1, 3)
    shown = Pictures(rgba=rgba, text=text, camera=torch.tensor([[10.0, 20.0]]), empty=-text)
    batch = shown.draw(200, torch.Generator().manual_seed(0))
    expected = torch.tensor([1.0, -0.6, -1.0])[:, None, None].expand(3, 32, 64)
    torch.testing.assert_close(batch.x0[0, :, :32], expected, atol=1e-6, rtol=0)
    below = batch.x0[:, :, 32:]
    assert torch.equal(below, below[:, :, :1, :1].expand_as(below))
    colors = below[:, :, 0, 0]
    assert colors.min() >= -1
    assert colors.max() <= 1
    grey = ((colors - colors[:, :1]).abs().amax(1) < 1e-6).float().mean()
    assert 0.35 < float(grey) < 0.65
    assert batch.cond is not None
    assert batch.cond.uncond is not None
    assert batch.cond.camera is not None
    assert batch.cond.camera[7].tolist() == [10.0, 20.0]
    assert batch.cond.uncond.camera is None
    assert batch.cond.uncond.text is not None
    assert torch.equal(batch.cond.uncond.text[7], -text[0])


def test_prompts_are_of_the_teacher_s_words() -> None:
    generator = torch.Generator().manual_seed(0)
    found = {random_prompt(VOCABULARY, generator) for _ in range(300)}
    assert "a red toadstool" in found
    assert "a blue car on a red cube" in found
    assert "a red mushroom with blue cap" in found
    assert {word for prompt in found for word in prompt.split()} == set(WORDS)


def test_imagined_pictures_are_of_their_prompts_and_cameras(
    teacher: ToyboxTeacher, pictures: Pictures
) -> None:
    assert pictures.rgba.shape == (32, 64, 64, 4)
    assert bool((pictures.rgba[..., 3] == 255).all())
    assert len(torch.unique(pictures.rgba.reshape(32, -1), dim=0)) == 32
    # Each of the steps shows the same four views.
    assert torch.equal(pictures.camera[:4], pictures.camera[28:])
    low, high = OptimizeConfig().elevation_range_deg
    assert low <= pictures.camera[:, 1].min() < pictures.camera[:, 1].max() <= high
    again = imagined(teacher, 32, seed=0)
    assert torch.equal(again.rgba, pictures.rgba)
    assert len(pictures + again) == 64


# --- what is taught --------------------------------------------------------------------------


def test_the_target_is_what_a_run_asks_in_two_passes(
    teacher: ToyboxTeacher, pictures: Pictures
) -> None:
    """Camera and prompt against neither, as a run's supervision does by default."""
    ground = toybox_ground(teacher, teacher.network, pictures)
    assert ground.parametrisation is Parametrisation.X0
    method = GuidanceDistillation(ground, min_scale=1.0, max_scale=7.5, steps=1, batch=2)
    assert OptimizeConfig().camera_guidance
    views = ring(2, 20.0)
    asked = teacher.encode("a red mushroom").with_camera(views.camera, drop_in_uncond=True)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 64, 64, generator=generator)
    t = torch.tensor([0.4, 0.9])
    for scale in (1.0, 4.0, 7.5):
        expected = ClassifierFreeGuidance(teacher, scale)(x, t, asked).x0
        cond = replace(asked, guidance_scale=torch.full((2,), scale))
        torch.testing.assert_close(method.target(x, t, cond), expected, atol=1e-6, rtol=1e-6)
    drawn = method.ground.data(64, generator).cond
    assert drawn is not None
    assert drawn.guidance_scale is not None
    assert 1.0 <= drawn.guidance_scale.min() < 2.0
    assert 6.5 < drawn.guidance_scale.max() <= 7.5


def test_a_new_student_misses_all_guidance_and_two_passes_none(
    teacher: ToyboxTeacher, pictures: Pictures
) -> None:
    ground = toybox_ground(teacher, teacher.network, pictures)
    method = GuidanceDistillation(ground, min_scale=1.0, max_scale=7.5, steps=1, batch=2)
    exact = guidance_error(method.ground.teacher, ground, (2.0, 4.0), 4, seed=0)
    assert exact == {"missed_at_2": 0.0, "missed_at_4": 0.0}
    new = guidance_error(method.denoiser, ground, (2.0, 4.0), 4, seed=0)
    # In its own precision the student is a copy of the teacher, which ignores the scale.
    assert list(new.values()) == pytest.approx([1.0, 1.0], rel=0.2)


def test_the_weight_is_that_of_the_noise() -> None:
    t = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(toybox.inverse_sigma(FlowSchedule(), t), 1 / t)


# --- the command -----------------------------------------------------------------------------


def config(out: Path, method: str = "guidance", nfe: int = 8, **changed: int) -> DistillConfig:
    return DistillConfig(method=method, teacher="toybox", nfe=nfe, out=out, **{**SMALL, **changed})


def run(given: DistillConfig, base: Path, should_stop: Callable[[], bool] = lambda: False) -> Path:
    return distill_toybox(given, lambda _: None, should_stop, pictures=32, base=base)


def test_a_guided_teacher_comes_out_and_is_loaded_by_its_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an interrupted distillation goes on to the same bits."""
    whole = run(config(tmp_path / "whole"), base)
    names = {p.name for p in whole.iterdir()}
    assert names == {"student.json", "student.safetensors", "samples.png", "history.png", "teacher"}
    asked = iter([False, True, True])
    with pytest.raises(Interrupted, match="goes on from step 2 of 4"):
        run(config(tmp_path / "parts"), base, lambda: next(asked))
    parts = run(config(tmp_path / "parts"), base)
    for name in ("student.safetensors", "teacher/weights.sha256"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()

    measured = json.loads((whole / "student.json").read_text())["measured"]
    assert {"missed_at_2", "missed_at_4", "missed_at_7.5", "to_teacher"} <= measured.keys()
    with Image.open(whole / "samples.png") as image:
        assert image.size == (128, 128)
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20

    monkeypatch.setattr(teachers, "TOYBOX_FOLDER", base)
    teacher = teachers.load_teacher(str(whole / "teacher"), "cpu")
    assert isinstance(teacher, GuidedToyboxTeacher)
    assert teacher.guidance_scales == toybox.SCALES
    monkeypatch.setattr(teachers, "GUIDED_FOLDER", whole / "teacher")
    named = teachers.load_teacher("toybox-guided", "cpu")
    assert named.weights_sha256 == teacher.weights_sha256 != weights_sha256(base)
    (whole / "teacher" / "weights.sha256").write_text("0" * 64)
    with pytest.raises(TeacherError, match="damaged or was exchanged"):
        teachers.load_teacher("toybox-guided", "cpu")


@pytest.mark.parametrize(
    ("method", "nfe", "students"),
    [
        ("progressive", 8, {"student"}),
        ("guided-progressive", 4, {"guidance", "student", "student_8"}),
    ],
)
def test_progressive_students_are_trained_and_kept(
    method: str,
    nfe: int,
    students: set[str],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run(config(tmp_path, method, nfe), base)
    tensors = load_file(folder / "student.safetensors")
    assert {name.partition(".")[0] for name in tensors} == students
    assert any(bool(v.any()) for name, v in tensors.items() if name.endswith("lora_B.weight"))
    assert (folder / "teacher").exists() == (method == "guided-progressive")
    seen: list[Distillation] = []

    def drawn(student: Distillation, *how: int) -> tuple[Tensor, Tensor]:
        seen.append(student)
        return student_and_teacher(student, *how)

    monkeypatch.setattr(toybox_run, "student_and_teacher", drawn)
    grid = tmp_path / "pictures" / "grid.png"
    words = ["sample", str(folder), "--samples", "3", "--out", str(grid)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == str(grid)
    with Image.open(grid) as image:
        assert image.size == (3 * 64, 2 * 64)
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    # What was drawn is what was trained.
    for name, module in seen[0].modules().items():
        assert isinstance(module, ToyboxStudent)
        for key, value in module.delta().items():
            assert torch.equal(value, tensors[f"{name}.{key}"].float())
    assert_refused(capsys, [*words, "--nfe", "3"], "--nfe is 3")
    assert_refused(capsys, ["sample", str(folder), "--samples", "300"], "--samples is 300")
    damage(folder / "student.safetensors")
    assert_refused(capsys, words, "missing or damaged")
    vocabulary = base / "vocabulary.json"
    text = vocabulary.read_text()
    vocabulary.write_text(text + " ")
    try:
        assert_refused(capsys, words, "is not that of")
    finally:
        vocabulary.write_text(text)
    damage(folder / "student.json")
    assert_refused(capsys, words, "distil the student again")


def assert_refused(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_sheet_s_last_row_may_be_short(tmp_path: Path) -> None:
    made = torch.full((5, 3, 64, 64), -1.0)
    toybox_run._sheet(made, torch.zeros_like(made), tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (6 * 64, 2 * 64, 3)
    assert pixels[::64, ::64, 0].tolist() == [[0, 0], [128, 128]] * 2 + [[0, 255], [128, 255]]


def test_what_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyboxTeacher, "load", lambda *_, **__: pytest.fail("nothing is loaded"))
    for words, said in [
        (["meanflow"], "meanflow does not fit the ground toybox: give guidance"),
        (["guidance", "--nfe", "3"], "guidance is meant for --nfe 8, 16, 32, not for 3"),
        (["ufogan"], "nearest: ufogen"),
    ]:
        command = ["distill", *words, "--teacher", "toybox", "--out", str(tmp_path)]
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="cannot be read"):
        run(config(tmp_path / "out"), tmp_path)
