"""Teachers that are not whole, at the command line: one line, exit 2, and nothing begun."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sds3d import cli

STEM = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def refusal(error: str) -> str:
    """The one line of ours in what a command said."""
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("sds3d: ")]
    return line


def in_shards(folder: Path, of: str) -> None:
    """The UNet in one shard, with an index that says `of` of each tensor."""
    unet = folder / "unet"
    tensors = load_file(unet / STEM)
    save_file(tensors, unet / "one.safetensors", {"format": "pt"})
    (unet / STEM).unlink()
    index = {"weight_map": dict.fromkeys(tensors, of)}
    (unet / f"{STEM}.index.json").write_text(json.dumps(index))


def numbers_for_shards(folder: Path) -> None:
    in_shards(folder, "one.safetensors")
    (folder / "unet" / f"{STEM}.index.json").write_text('{"weight_map": {"a": 3}}')


def cut(folder: Path) -> None:
    path = folder / "vae" / STEM
    path.write_bytes(path.read_bytes()[:-9])


def forget_a_tensor(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, path, {"format": "pt"})


def tear(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text("{")

    return write


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (lambda f: in_shards(f, "two.safetensors"), "two.safetensors is missing"),
    "a shard elsewhere": (lambda f: in_shards(f, "../vae/" + STEM), ".index.json is damaged"),
    "no names of shards": (numbers_for_shards, ".index.json is damaged"),
    "a truncated file": (cut, f"vae/{STEM} has "),
    "no text encoder": (
        lambda f: shutil.rmtree(f / "text_encoder"),
        "text_encoder/config.json is missing",
    ),
    "a torn tokenizer": (tear("tokenizer/tokenizer.json"), "the teacher's tokenizer in"),
    "a torn config": (tear("unet/config.json"), "the teacher's unet in"),
    "half a text encoder": (forget_a_tensor, "the teacher's text_encoder in"),
}


def test_too_little_memory_for_a_teacher_is_not_called_damage(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the error that torch really raises, as diffusers wraps it."""

    def exhausted(*_: object, **__: object) -> None:
        try:
            torch.empty(2**46)
        except RuntimeError as error:
            raise OSError("Unable to load weights from checkpoint file") from error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", exhausted)
    words = ["generate", "a mug", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--teacher", str(tiny_folder("sd-eps"))]) == 2
    error = capsys.readouterr().err
    line = refusal(error)
    assert line.startswith("sds3d: out of memory")
    assert "damaged" not in error


# What lies in a file of the right length is seen when it is read, by a second teacher in its stage.
BOTH = [name for name in FAULTS if name != "half a text encoder"]


@pytest.mark.parametrize(
    ("flag", "fault"),
    [*(("--teacher", name) for name in FAULTS), *(("--refine-teacher", name) for name in BOTH)],
)
def test_a_teacher_that_is_not_whole_is_one_line(
    flag: str,
    fault: str,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, damage = tiny_folder("sd-eps"), FAULTS[fault]
    folder = Path(shutil.copytree(whole, tmp_path / "teacher"))
    damage[0](folder)
    out = tmp_path / "out"
    words = ["generate", "a mug", "--device", "cpu", "--steps", "1", "--out", str(out)]
    if flag == "--refine-teacher":
        words += ["--teacher", str(whole), "--refine-steps", "1"]
    assert cli.main([*words, flag, str(folder)]) == 2
    line = refusal(capsys.readouterr().err)
    assert damage[1] in line
    assert "download or copy the folder again" in line
    assert not list(out.glob("*/result.json"))
    if flag == "--refine-teacher":
        assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("sdxl", ["--latent"], "--latent is True: how this teacher's latents are read"),
        ("if", ["--latent"], "--latent is True: this teacher judges pixels"),
        ("sd-eps", ["--embedded-guidance", "2"], "--embedded-guidance is 2"),
    ],
)
def test_what_a_teacher_cannot_do_is_refused_before_the_run_has_a_folder(
    name: str,
    words: list[str],
    said: str,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["generate", "a mug", "--device", "cpu", "--steps", "1", "--out", str(out)]
    assert cli.main([*command, "--teacher", str(tiny_folder(name)), *words]) == 2
    assert refusal(capsys.readouterr().err).startswith(f"sds3d: {said}")
    assert not list(out.iterdir())


def test_a_longer_prompt_than_is_read_is_one_warning_of_ours(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["preview", "mushroom " * 12, "--device", "cpu", "--sample-steps", "1"]
    out = ["--teacher", str(tiny_folder("sd-eps")), "--out", str(tmp_path / "out")]
    assert cli.main([*words, *out]) == 0
    error = capfd.readouterr().err
    assert "reads the first 77" in error
    assert "transformers" not in error
    assert "indexing errors" not in error
