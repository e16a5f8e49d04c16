"""The teacher's folder: found, checked against its hash, and every damage named."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.toybox import ToyboxTeacher, weights_sha256
from core.teachers.toybox_network import (
    make_network,
    make_tokenizer,
    save_network,
)
from sds3d import cli, doctor, teachers
from sds3d.errors import OutputError, PromptError, TeacherError
from sds3d.preview import VIEWS, PreviewConfig, draw_views, preview


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole teacher's folder with random weights that knows mushrooms and cars."""
    folder = tmp_path_factory.mktemp("teacher")
    words = ["a", "red", "blue", "mushroom", "car"]
    network = make_network(len(words) + 4)
    for parameter in network.parameters():
        if not parameter.any():  # a new network predicts zero
            parameter.data.normal_(std=0.1)
    kinds = {"mushroom": ["mushroom"], "car": ["car"]}
    vocabulary: dict[str, object] = {"kinds": kinds, "colors": ["red", "blue"]}
    save_network(network, make_tokenizer(words), vocabulary, folder)
    return folder


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(untrained, tmp_path / "teacher"))


def test_a_folder_is_a_teacher(folder: Path) -> None:
    teacher = teachers.load_teacher(str(folder), "cpu")
    assert isinstance(teacher, ToyboxTeacher)
    assert teacher.weights_sha256 == weights_sha256(folder)
    assert teacher.subjects == ("car", "mushroom")
    assert not any(p.requires_grad for p in teacher.module.parameters())


def test_prompts_are_read_in_the_users_terms(folder: Path) -> None:
    teacher = teachers.load_teacher(str(folder), "cpu")
    assert teachers.check_prompt(teacher, "a red mushroom") is None
    warning = teachers.check_prompt(teacher, "a vermilion mushroom")
    assert warning is not None
    assert "vermilion" in warning
    with pytest.raises(PromptError, match="car, mushroom") as refused:
        teachers.check_prompt(teacher, "a hamburger")
    # Both say how any words are read, and a teacher that reads them does not.
    for text in (warning, str(refused.value)):
        assert text.endswith("; --teacher FOLDER or NAME reads any words, see docs/teachers.md")


def test_a_teacher_of_any_words_is_not_told_to_use_one(fakes: SimpleNamespace) -> None:
    warning = teachers.check_prompt(fakes.Teacher(), "a purplish mushroom")
    assert warning == "never seen 'purplish'"


def test_no_such_teacher_is_refused_with_what_to_give(tmp_path: Path) -> None:
    for name, remedy in {
        "nope": "give toybox",
        "/dev/null": "give toybox",
        str(tmp_path): "give the folder of a whole pipeline",
    }.items():
        with pytest.raises(TeacherError, match=rf"--teacher is .*: {remedy}"):
            teachers.load_teacher(name, "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "vocabulary.json",
        "transformer/config.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_file_is_named_as_the_teachers(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2 if damage == "truncated" else 0])
    with pytest.raises(TeacherError, match="teacher") as caught:
        teachers.load_teacher(str(folder), "cpu")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_weights_is_seen_by_the_recorded_hash(folder: Path) -> None:
    pin = folder / teachers.PINNED_HASH
    pin.write_text(weights_sha256(folder) + "\n")
    teachers.load_teacher(str(folder), "cpu")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the lowest bit of the last number: it loads, and is finite
    path.write_bytes(data)
    with pytest.raises(TeacherError, match="damaged or was exchanged"):
        teachers.load_teacher(str(folder), "cpu")
    pin.unlink()
    teachers.load_teacher(str(folder), "cpu")


# --- preview ---------------------------------------------------------------------------------


class Compass:
    """Predicts an image whose red and green say which camera and prompt it was asked for."""

    image_size = 8
    schedule = FlowSchedule()
    device = "cpu"

    def encode(self, prompts: list[str], negative_prompt: str = "") -> Conditioning:
        import torch

        text = torch.full((len(prompts), 1, 1), 1.0)
        return Conditioning(text=text, uncond=Conditioning(text=torch.zeros_like(text)))

    def __call__(self, x_t: Any, t: Any, cond: Conditioning | None = None) -> Prediction:
        import torch

        assert cond is not None
        assert cond.camera is not None
        assert cond.text is not None
        x0 = torch.zeros_like(x_t)
        x0[:, 0] = (cond.camera[:, 0] / 360)[:, None, None]
        x0[:, 1] = (cond.camera[:, 1] / 90)[:, None, None]
        x0[:, 2] = 0.25 * cond.text[:, 0, :, None]
        return Prediction.from_x0(x0, x_t, t, self.schedule)


def test_each_picture_is_asked_for_its_own_camera_and_guided() -> None:
    config = PreviewConfig(prompt="a red mushroom", guidance_scale=2.0, sample_steps=3)
    teacher: Any = Compass()
    frames = draw_views(teacher, config)
    assert frames.shape == (4, 8, 8, 3)
    for frame, (azimuth_deg, elevation_deg) in zip(frames, VIEWS.values(), strict=True):
        expected = (np.array([azimuth_deg / 360, elevation_deg / 90, 0.5]) + 1) * 127.5
        assert np.abs(frame - expected).max() <= 1


def test_the_teacher_without_a_camera_knows_a_view_by_its_name() -> None:
    teacher = teachers.load_teacher(teachers.WORDS, "cpu")
    assert teacher.weights_sha256 == teachers.pinned_sha256(teachers.WORDS_FOLDER)
    config = PreviewConfig(prompt="a green teapot", teacher=teachers.WORDS, sample_steps=12)
    front, side, back, _ = draw_views(teacher, config).astype(float)

    def width(picture: np.ndarray) -> int:
        ground = np.median(picture[0], axis=0)
        return int((np.abs(picture - ground).max(axis=(0, 2)) > 60).sum())

    # Handle and spout stand out to both sides, and from the side neither does.
    assert width(front) > 1.3 * width(side)
    assert width(back) > 1.3 * width(side)


def test_preview_writes_one_picture_of_four_views_that_depends_on_the_seed(
    untrained: Path, tmp_path: Path
) -> None:
    def draw(seed: int) -> np.ndarray:
        config = PreviewConfig(
            prompt="a red mushroom",
            teacher=str(untrained),
            device="cpu",
            seed=seed,
            sample_steps=2,
            out=tmp_path / "out",
        )
        path = preview(config)
        assert path == tmp_path / "out" / f"a-red-mushroom-preview-{seed}.png"
        with Image.open(path) as image:
            return np.asarray(image)

    first = draw(0)
    assert first.shape[1] > 4 * first.shape[0] * 0.95
    assert first.std() > 1
    assert np.array_equal(draw(0), first)
    assert not np.array_equal(draw(1), first)


def test_the_preview_command_prints_the_pictures_path(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preview", "a red mushroom", "--teacher", str(untrained), "--sample-steps", "1"]
    assert cli.main([*words, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert cli.main(["preview", "a hamburger", *words[2:], "--out", str(tmp_path)]) == 2
    assert "car, mushroom" in capsys.readouterr().err
    with pytest.raises(OutputError):
        preview(PreviewConfig(prompt="a red mushroom", out=Path("/dev/null/x")))


# --- doctor ----------------------------------------------------------------------------------


def test_the_doctor_looks_at_everything_and_says_what_is_missing(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teachers, "TOYBOX_FOLDER", untrained)
    findings = doctor.examine()
    assert not [f for f in findings if "the check failed" in f.text]
    by_name = {finding.name: finding for finding in findings}
    expected = {"python", "torch", "cpu", "cuda", "memory", "disk", "encoding on cpu", "tinycudann"}
    expected |= {"ffmpeg", "teacher toybox", "sds3d"}
    assert expected <= set(by_name)
    # What no path of the program uses is not looked for.
    assert not {name for name in by_name if name.startswith("nerfacc ")}
    assert {"node", "gltf-validator"} & set(by_name)
    teacher = by_name["teacher toybox"]
    assert teacher.status == "ok"
    assert weights_sha256(untrained) in teacher.text
    assert by_name["encoding on cpu"].text.startswith("numba: ")
    assert by_name["encoding on cpu"].text.endswith("its self-test against the reference passed")
    assert by_name["cuda kernels"].status != "problem"
    assert doctor.healthy(findings)
    assert "sds3d can run here" in doctor.report(findings)
    assert cli.main(["doctor", "--json"]) == 0
    import json

    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is True
    assert {finding["name"] for finding in document["findings"]} == set(by_name)


def test_the_doctor_reports_a_missing_teacher_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teachers, "TOYBOX_FOLDER", tmp_path)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem teacher toybox" in out
    assert out.splitlines()[-1].startswith("sds3d cannot run here")


def test_a_check_that_breaks_is_a_finding_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no sensors")

    monkeypatch.setattr(doctor, "_disk", broken)
    monkeypatch.setattr(doctor, "_teacher", lambda: [])
    findings = doctor.examine()
    (finding,) = [f for f in findings if f.status == "problem"]
    assert "no sensors" in finding.text
    assert len(findings) > 10
    assert not doctor.healthy(findings)


def test_the_fake_teacher_of_these_tests_is_one(fakes: SimpleNamespace) -> None:
    assert teachers.check_prompt(fakes.Teacher(), "a mushroom") is None
