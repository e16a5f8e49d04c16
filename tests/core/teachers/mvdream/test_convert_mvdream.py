"""The converted teacher against the network of its file, written down plainly in conftest."""

# transformers makes some names at run time.
# pyright: reportAttributeAccessIssue=false

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample
from core.teachers.convert_mvdream import main
from core.teachers.folder import read_folder
from core.teachers.mvdream import MVDreamTeacher
from core.teachers.mvdream_unet import camera_matrix
from core.teachers.teacher import TeacherOptions

TOLERANCE = 1e-4
SIZE = TeacherOptions(image_size=16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    size = float(expected.abs().max())
    assert size > 0.01
    assert float((found - expected).abs().max()) < TOLERANCE * size


def two_objects() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and cameras (azimuth, elevation) of four views of each of two objects."""
    timestep = torch.tensor([100.0, 700.0]).repeat_interleave(4)
    azimuth = torch.tensor([10.0, 100, 190, 280, 45, 135, 225, 315])
    elevation = torch.tensor([5.0, 25.0]).repeat_interleave(4)
    return normal(8, 4, 8, 8), timestep, torch.stack([azimuth, elevation], dim=1)


@pytest.fixture(scope="module")
def teacher(converted: Path) -> MVDreamTeacher:
    return MVDreamTeacher.load(converted, options=SIZE)


@torch.no_grad()
def test_the_converted_network_predicts_what_the_files_does(
    reference: Any, teacher: MVDreamTeacher
) -> None:
    x, timestep, camera = two_objects()
    text = normal(8, 77, 64, seed=1)
    found = teacher(x, timestep / 999, Conditioning(text=text, camera=camera)).eps
    expected = reference.unet(x, timestep, text, camera_matrix(camera), 4)
    assert_equal(found, expected)
    # Neither the other views nor the camera are bystanders, nor do objects see each other.
    apart = reference.unet(x, timestep, text, camera_matrix(camera), 1)
    turned = reference.unet(x, timestep, text, camera_matrix(camera + 20), 4)
    for other in (apart, turned):
        assert (other - expected).abs().max() > 30 * TOLERANCE * expected.abs().max()
    alone = Conditioning(text=text[4:], camera=camera[4:])
    assert_equal(teacher(x[4:], timestep[4:] / 999, alone).eps, expected[4:])


@torch.no_grad()
def test_guided_predictions_and_a_sample_are_those_of_the_file(
    reference: Any, teacher: MVDreamTeacher
) -> None:
    """There is no pipeline of it in diffusers: four steps of DDIM on the file's own network and
    betas, written out, with both halves of guidance told the cameras."""
    x, _, camera = two_objects()
    cond = teacher.encode(["red car"] * 8, "blurry").with_camera(camera)
    assert cond.text is not None
    assert cond.uncond is not None
    assert cond.uncond.text is not None
    guided = ClassifierFreeGuidance(teacher, 7.5)
    # The last step ends at the first timestep.
    timesteps = torch.tensor([751, 501, 251, 1, 0])
    products = (1 - reference.betas.double()).cumprod(0)
    state, size = x, float(x.abs().max())
    for now, after in itertools.pairwise(timesteps.tolist()):
        at = torch.full((8,), float(now))
        eps, uncond = (
            reference.unet(state, at, text, camera_matrix(camera), 4)
            for text in (cond.text, cond.uncond.text)
        )
        eps = uncond + 7.5 * (eps - uncond)
        assert_equal(guided(state, at / 999, cond).eps, eps)
        alpha, alpha_after = (float(products[t]) ** 0.5 for t in (now, after))
        sigma, sigma_after = (float(1 - products[t]) ** 0.5 for t in (now, after))
        state = alpha_after * (state - sigma * eps) / alpha + sigma_after * eps
    final = sample(guided, DDIM(), timesteps.double() / 999, x, cond).x
    assert_equal(final, state)
    assert (state - x).abs().max() > 0.1 * size


@torch.no_grad()
def test_without_a_camera_every_sample_is_a_picture_by_itself(
    reference: Any, teacher: MVDreamTeacher
) -> None:
    x, timestep, camera = two_objects()
    text = normal(8, 77, 64, seed=1)
    found = teacher(x[:3], timestep[:3] / 999, Conditioning(text=text[:3])).eps
    assert_equal(found, reference.unet(x[:3], timestep[:3], text[:3], None, 1))
    # What was asked last is not remembered.
    together = teacher(x, timestep / 999, Conditioning(text=text, camera=camera)).eps
    assert_equal(together, reference.unet(x, timestep, text, camera_matrix(camera), 4))
    with pytest.raises(ValueError, match="no multiple of 4 views"):
        teacher(x[:3], timestep[:3] / 999, Conditioning(text=text[:3], camera=camera[:3]))


@torch.no_grad()
def test_text_and_images_are_read_as_by_the_file(reference: Any, teacher: MVDreamTeacher) -> None:
    cond = teacher.encode("red car", "a b")
    assert cond.text is not None
    assert cond.uncond is not None
    assert cond.uncond.text is not None
    (reader,) = teacher.text_readers
    ids = teacher.token_ids(reader, ["red car", "a b"])["input_ids"]
    words = reference.text.token_embedding.num_embeddings
    assert ids[0, :8].tolist() != ids[1, :8].tolist()
    assert ids[:, 0].tolist() == [words - 2] * 2
    assert ids[:, -1].tolist() == [0, 0]  # OpenCLIP pads with zeros
    assert_equal(torch.cat([cond.text, cond.uncond.text]), reference.text(ids))

    image, z = normal(2, 3, 16, 16).clamp(-1, 1), normal(2, 4, 8, 8)
    assert_equal(teacher.encode_image(image), 0.18215 * reference.first_stage_model.mean(image))
    assert_equal(teacher.decode_latents(z), reference.first_stage_model.decode(z / 0.18215))


@torch.no_grad()
def test_the_file_for_stable_diffusion_1_becomes_a_teacher_too(
    first_generation: Callable[[], Any], vocabulary: Path, tmp_path: Path
) -> None:
    reference = first_generation()
    words = reference.text.token_embedding.num_embeddings
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            hidden_act="quick_gelu",
        )
    ).eval()
    for name, parameter in clip.named_parameters():
        if "embedding" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    tensors = {k: v for k, v in reference.state_dict().items() if "cond_stage" not in k}
    for name, tensor in getattr(clip, "text_model", clip).state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    positions = torch.arange(77)[None]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    path, folder = tmp_path / "sd-v1.5-4view.pt", tmp_path / "teacher"
    torch.save(tensors, path)
    assert main([str(path), str(folder), "--tokenizer", str(vocabulary)]) == 0

    teacher = MVDreamTeacher.load(folder, options=SIZE)
    x, timestep, camera = two_objects()
    text = normal(8, 77, 64, seed=1)
    found = teacher(x, timestep / 999, Conditioning(text=text, camera=camera)).eps
    assert_equal(found, reference.unet(x, timestep, text, camera_matrix(camera), 4))
    (reader,) = teacher.text_readers
    ids = teacher.token_ids(reader, ["red car"])["input_ids"]
    assert int(ids[0, -1]) == words - 1  # CLIP pads with the end of the text
    encoded = teacher.encode("red car").text
    assert encoded is not None
    assert_equal(encoded, clip(ids).last_hidden_state)


class Anything:
    """What no restricted unpickler makes."""


def damaged(tensors: dict[str, Any], fault: str) -> Any:
    unet = "model.diffusion_model."
    match fault:
        case "code":
            return {**tensors, "x": Anything()}
        case "list":
            return list(tensors.values())
        case "no unet":
            return {k: v for k, v in tensors.items() if not k.startswith(unet)}
        case "no camera":
            return {k: v for k, v in tensors.items() if "camera_embed" not in k}
        case "one missing":
            return {k: v for k, v in tensors.items() if k != f"{unet}middle_block.1.norm.bias"}
        case "one more":
            return {**tensors, f"{unet}motion.weight": torch.zeros(1)}
        case _:
            return {**tensors, "alphas_cumprod": tensors["alphas_cumprod"] ** 2}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("code", "holds more than weights"),
        ("list", "something else than named tensors"),
        ("no unet", "no MVDream's state dict"),
        ("no camera", "class_embedding"),
        ("one missing", "mid_block.attentions.0.norm.bias"),
        ("one more", "motion.weight"),
        ("schedule", "another noise schedule"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line_and_leaves_no_teacher(
    fault: str,
    message: str,
    published: Path,
    vocabulary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = torch.load(published, weights_only=True)
    path, folder = tmp_path / "x.pt", tmp_path / "teacher"
    torch.save(damaged(tensors, fault), path)
    assert main([str(path), str(folder), "--tokenizer", str(vocabulary)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not folder.exists()


def test_a_file_that_is_cut_off_a_full_folder_and_missing_words_are_named(
    published: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(published.read_bytes()[:1000])
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    other = tmp_path / "other"
    other.mkdir()
    new, words = str(tmp_path / "new"), ["--tokenizer", str(vocabulary)]
    for arguments, message in (
        ([str(cut), new, *words], "is damaged"),
        ([str(tmp_path / "none.pt"), new, *words], "No such file"),
        ([str(published), str(full), *words], "is not empty: give a new folder"),
        ([str(published), str(published), *words], "is not empty: give a new folder"),
        ([str(published), new, "--tokenizer", str(other)], "give --tokenizer"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not Path(new).exists()
    assert (full / "mine.txt").read_text() == "keep"


def test_words_of_another_vocabulary_are_refused(
    published: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fewer.pt"
    tensors = torch.load(published, weights_only=True)
    name = "cond_stage_model.model.token_embedding.weight"
    torch.save({**tensors, name: tensors[name][:-1]}, path)
    assert main([str(path), str(tmp_path / "new"), "--tokenizer", str(vocabulary)]) == 2
    assert "vocabulary has 54 tokens, and the tokenizer 55" in capsys.readouterr().err


def test_the_folder_is_whole_and_has_no_pickle(converted: Path) -> None:
    folder = read_folder(converted)
    assert folder.class_name == "MVDreamTeacher"
    assert not folder.problems
    assert {part.name for part in folder.components if part.is_model} == {
        "unet",
        "vae",
        "text_encoder",
    }
    assert all(p.suffix in (".json", ".safetensors") for p in converted.rglob("*") if p.is_file())
    assert json.loads((converted / "unet" / "config.json").read_text())["sample_size"] == 32
