"""A folder's faults: each is seen before anything is loaded, and named with what to do."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.teachers.convert_pickles import main as convert
from core.teachers.errors import TeacherWeightsError
from core.teachers.folder import read_folder
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder("sd-eps"), tmp_path / "teacher"))


def refusal(folder: Path) -> str:
    with pytest.raises(TeacherWeightsError) as caught:
        StableDiffusionTeacher.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_has_no_problems_and_counts_its_weights(folder: Path) -> None:
    found = read_folder(folder)
    assert found.problems == ()
    assert {part.name for part in found.components} == {
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
    }
    unet = found.component("unet")
    tensors = load_file(folder / UNET)
    assert unet.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert unet.weight_bytes == (folder / UNET).stat().st_size


@pytest.mark.parametrize(
    "name",
    [
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
        TEXT_ENCODER,
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing: download or copy the folder again" in refusal(folder)


def test_a_half_downloaded_file_is_named_with_its_sizes(folder: Path) -> None:
    path = folder / UNET
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    assert f"{UNET} has {len(data) - 7} of {len(data)} bytes" in refusal(folder)
    assert read_folder(folder).component("unet").parameters == 0
    for rest in (b"", data[:5], data[:100], b"\xff" * 64):
        path.write_bytes(rest)
        assert f"{UNET} is damaged" in refusal(folder)
    (folder / TEXT_ENCODER).unlink()
    assert "(and 1 more" in refusal(folder)


def test_tensors_that_are_missing_or_misshapen_are_not_drawn_at_random(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    name = sorted(tensors)[0]
    kept = {k: v for k, v in tensors.items() if k != name}
    save_file(kept, folder / UNET, {"format": "pt"})
    assert "unet" in refusal(folder)
    save_file(kept | {name: torch.zeros(1)}, folder / UNET, {"format": "pt"})
    assert "unet" in refusal(folder)


def test_a_folder_of_another_kind_is_refused(
    folder: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(TeacherWeightsError, match="has no text_encoder_2"):
        StableDiffusionXLTeacher.load(folder)
    assert "scheduler" in refusal(tiny_folder("flux-dev"))
    assert "is damaged or of another kind" in refusal(tiny_folder("flux-dev"))
    assert "no readable model_index.json" in refusal(tmp_path)
    index = folder / "unet" / "config.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | {"time_cond_proj_dim": 8}))
    assert "unet" in refusal(folder)
    # Of what the library says, its first sentence.
    index.write_text(json.dumps(whole | {"block_out_channels": [8, 16]}))
    assert "torch.Size([8]), but got torch.Size([4])): download or copy" in refusal(folder)


def test_weights_in_shards_and_in_half_precision_are_found(folder: Path) -> None:
    whole = StableDiffusionTeacher.load(folder)
    before = whole.weights_sha256
    tensors = load_file(folder / UNET)
    names = sorted(tensors)
    shards = {"a-00001-of-00002.safetensors": names[:9], "a-00002-of-00002.safetensors": names[9:]}
    for shard, held in shards.items():
        save_file({k: tensors[k] for k in held}, folder / "unet" / shard, {"format": "pt"})
    (folder / UNET).unlink()
    document = {"metadata": {}, "weight_map": {k: s for s, held in shards.items() for k in held}}
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(document))
    sharded = StableDiffusionTeacher.load(folder)
    assert sharded.weights_sha256 != before
    expected = whole.unet.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in sharded.unet.state_dict().items())
    (folder / "unet" / next(iter(shards))).unlink()
    assert "unet/a-00001-of-00002.safetensors is missing" in refusal(folder)

    index.unlink()
    half = {k: v.half() for k, v in tensors.items()}
    path = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file(half, path, {"format": "pt"})
    assert read_folder(folder).component("unet").variant == "fp16"
    loaded = StableDiffusionTeacher.load(folder).unet.state_dict()
    assert all(torch.equal(v, half[k].float()) for k, v in loaded.items())


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('the pickle was run')",)


def test_a_pickle_is_refused_with_the_command_that_converts_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = StableDiffusionTeacher.load(folder).encode("a car").text
    for name, bin_name in (
        (UNET, "diffusion_pytorch_model.bin"),
        (TEXT_ENCODER, "pytorch_model.bin"),
    ):
        path = folder / name
        torch.save(load_file(path), path.with_name(bin_name))
        path.unlink()
    text = refusal(folder)
    assert "text_encoder/pytorch_model.bin is a pickle" in text
    assert f"convert it once: python -m core.teachers.convert_pickles {folder}" in text
    assert convert([str(folder)]) == 0
    assert str(folder / UNET) in capsys.readouterr().out
    found = StableDiffusionTeacher.load(folder).encode("a car").text
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_the_converter_runs_nothing_of_what_it_reads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert([str(folder)]) == 2
    assert "no component with a .bin" in capsys.readouterr().err
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    assert convert([str(folder)]) == 2
    assert "holds more than weights" in capsys.readouterr().err
    torch.save({"state": {"deep": torch.zeros(1)}}, path)
    assert convert([str(folder)]) == 2
    assert "something else than named tensors" in capsys.readouterr().err


def test_a_checkpoint_in_one_file_is_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "v1-5-pruned.ckpt"
    path.write_bytes(b"x")
    text = refusal(path)
    assert "from_single_file" in text
    assert str(tmp_path / "v1-5-pruned") in text
