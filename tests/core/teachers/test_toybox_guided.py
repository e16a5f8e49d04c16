"""The embedded teacher with guidance built in: what it adds, how it is kept, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.guidance import EmbeddedGuidance, EmbedsGuidance
from core.teachers.errors import TeacherWeightsError
from core.teachers.toybox import ToyboxTeacher
from core.teachers.toybox_guided import (
    CONFIG,
    WEIGHTS,
    LowRankLinear,
    ToyboxStudent,
    load_guided,
    save_guided,
)
from core.teachers.toybox_network import make_network, make_tokenizer, save_network

WORDS = ["a", "red", "blue", "mushroom", "car"]
VOCABULARY: dict[str, object] = {
    "kinds": {"mushroom": ["mushroom"], "car": ["car"]},
    "colors": {"red": ["red"], "blue": ["blue"]},
}
RANK = 4
SCALES = (1.0, 7.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder with random weights that draw and listen."""
    folder = tmp_path_factory.mktemp("guided") / "toybox"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network(len(WORDS) + 4)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.1)
    save_network(network, make_tokenizer(WORDS), VOCABULARY, folder)
    return folder


@pytest.fixture(scope="module")
def plain(base: Path) -> ToyboxTeacher:
    return ToyboxTeacher.load(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def student(plain: ToyboxTeacher) -> ToyboxStudent:
    """One that has learnt something, by numbers that half precision holds exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = ToyboxStudent(plain.network, rank=RANK, dtype=torch.float32)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn_like(parameter)
                parameter.data = parameter.data.half().float()
    return made


@pytest.fixture(scope="module")
def whole(student: ToyboxStudent, plain: ToyboxTeacher, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("guided") / "toybox-guided"
    save_guided(student, folder, base_sha256=plain.weights_sha256, guidance_scales=SCALES)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "toybox-guided"))


def noised() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 64, 64, generator=generator), torch.tensor([0.3, 0.8])


def asked(teacher: ToyboxTeacher, scale: float | None = None) -> Conditioning:
    cond = teacher.encode("a red mushroom").with_camera(torch.tensor([[0.0, 10.0], [90.0, 40.0]]))
    cond = replace(cond, uncond=None)
    return cond if scale is None else replace(cond, guidance_scale=torch.full((2,), scale))


# --- the student -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("reads", [True, False])
def test_a_new_student_is_its_teacher_at_every_scale(plain: ToyboxTeacher, reads: bool) -> None:
    made = ToyboxStudent(plain.network, rank=2, reads_guidance_scale=reads, dtype=torch.float32)
    x, t = noised()
    expected = plain(x, t, asked(plain)).x0
    assert float(expected.std()) > 0.01
    for scale in (1.0, 7.5):
        found = made(x, t, cond=asked(plain, scale))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_what_is_added_learns_and_all_of_it_does(plain: ToyboxTeacher) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = ToyboxStudent(plain.network, rank=2, dtype=torch.float32)
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.data.normal_(std=0.1)
            assert parameter.requires_grad == any(
                part in name for part in ("lora_", "guidance_embedder", "refiner")
            ), name
    x, t = noised()
    made(x, t, cond=asked(plain, 3.0)).square().sum().backward()
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif parameter.ndim > 1:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_a_linear_layer_and_its_term_merge_to_the_same_bits() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = LowRankLinear(nn.Linear(6, 5), rank=2)
        layer.lora_B.data.normal_()
        x = torch.randn(3, 6)
    explicit = layer.base(x) + (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), explicit)
    assert (layer(x) - layer.base(x)).abs().max() > 0.01
    assert torch.equal(layer.merged()(x), layer(x))


@torch.no_grad()
def test_the_merged_network_is_the_student(student: ToyboxStudent, plain: ToyboxTeacher) -> None:
    x, t = noised()
    cond = asked(plain, 3.0)
    assert cond.text is not None
    assert cond.camera is not None
    merged = student.merged()
    assert not [m for m in merged.modules() if isinstance(m, LowRankLinear)]
    found = merged(x, t, cond.text, cond.camera, cond.guidance_scale)
    expected = student(x, t, cond=cond)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [m for m in student.modules() if isinstance(m, LowRankLinear)]


def test_what_it_reads_must_be_there(student: ToyboxStudent, plain: ToyboxTeacher) -> None:
    x, t = noised()
    with pytest.raises(ValueError, match=r"cond\.text"):
        student(x, t)
    with pytest.raises(ValueError, match=r"cond\.guidance_scale"):
        student(x, t, cond=asked(plain))


# --- on disk ---------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_delta_comes_back_to_the_bit(
    student: ToyboxStudent, whole: Path, base: Path, plain: ToyboxTeacher
) -> None:
    loaded = load_guided(whole, base, dtype=torch.float32)
    expected = student.merged().state_dict()
    found = loaded.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    x, t = noised()
    cond = asked(plain, 3.0)
    torch.testing.assert_close(
        loaded(x, t, cond).x0, student(x, t, cond=cond), atol=1e-5, rtol=1e-5
    )
    # And it is no longer its teacher, nor the same at another scale.
    assert (loaded(x, t, cond).x0 - plain(x, t, asked(plain)).x0).abs().max() > 1e-2
    assert (loaded(x, t, cond).x0 - loaded(x, t, asked(plain, 6.0)).x0).abs().max() > 1e-3


def test_the_file_holds_what_was_added_and_nothing_else(
    whole: Path, student: ToyboxStudent
) -> None:
    tensors = load_file(whole / WEIGHTS)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    parts = ("lora_A.weight", "lora_B.weight", "guidance_embedder", "refiner")
    assert all(any(part in name for part in parts) for name in tensors)
    linear = sum(isinstance(m, LowRankLinear) for m in student.modules())
    assert sum(name.endswith("lora_A.weight") for name in tensors) == linear > 40


def test_the_low_rank_terms_are_peft_s(whole: Path, plain: ToyboxTeacher, base: Path) -> None:
    """peft, told nothing but the file, makes the same weights of them."""
    peft = pytest.importorskip("peft")
    terms = {
        name.removeprefix("transformer."): value.float()
        for name, value in load_file(whole / WEIGHTS).items()
        if "lora_" in name
    }
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in terms})
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers)
    network = ToyboxTeacher.load(base, dtype=torch.float32).network.transformer
    injected = peft.inject_adapter_in_model(config, network)
    result = peft.set_peft_model_state_dict(injected, terms)
    assert not result.unexpected_keys
    ours = load_guided(whole, base, dtype=torch.float32).network.transformer
    for name in layers:
        layer = injected.get_submodule(name)
        layer.merge()
        merged = ours.get_submodule(name)
        assert isinstance(merged, nn.Linear)
        torch.testing.assert_close(layer.base_layer.weight, merged.weight, atol=1e-6, rtol=1e-5)
    assert len(layers) > 40


def test_other_weights_beneath_are_refused_in_one_line(
    whole: Path, base: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "toybox"))
    vocabulary = json.loads((other / "vocabulary.json").read_text())
    (other / "vocabulary.json").write_text(json.dumps(vocabulary) + " ")
    with pytest.raises(TeacherWeightsError) as caught:
        load_guided(whole, other)
    text = str(caught.value)
    assert "distilled from other weights" in text
    assert "--teacher toybox" in text
    assert "\n" not in text


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _edit(change: Callable[[dict[str, Tensor], str], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        tensors = load_file(path)
        change(tensors, sorted(tensors)[len(tensors) // 2])
        save_file(tensors, path)

    return edit


def _drop(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


def _spoil(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name].view(-1)[0] = torch.nan


def _reshape(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = torch.zeros(7, dtype=torch.float16)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, Path.unlink),
        (WEIGHTS, _cut),
        (WEIGHTS, _edit(_drop)),
        (WEIGHTS, _edit(_spoil)),
        (WEIGHTS, _edit(_reshape)),
        (CONFIG, Path.unlink),
        (CONFIG, _cut),
    ],
    ids=["missing", "cut", "tensor missing", "nan", "shape", "config missing", "config cut"],
)
def test_damage_is_refused(
    folder: Path, base: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)
    with pytest.raises(TeacherWeightsError) as caught:
        load_guided(folder, base)
    text = str(caught.value)
    assert str(folder) in text
    assert "missing or damaged" in text
    assert "\n" not in text


def test_the_hash_is_of_both(whole: Path, base: Path, folder: Path) -> None:
    sha256 = load_guided(whole, base).weights_sha256
    assert sha256 == (whole / "weights.sha256").read_text().strip()
    _edit(lambda tensors, name: tensors[name].add_(1))(folder / WEIGHTS)
    assert load_guided(folder, base).weights_sha256 != sha256


def test_a_student_without_a_scale_is_no_guided_teacher(
    plain: ToyboxTeacher, tmp_path: Path
) -> None:
    made = ToyboxStudent(plain.network, rank=2, reads_guidance_scale=False)
    with pytest.raises(ValueError, match="guidance scale"):
        save_guided(made, tmp_path, base_sha256="0", guidance_scales=SCALES)


# --- the teacher -----------------------------------------------------------------------------


def test_it_embeds_guidance_and_refuses_what_it_cannot_know(whole: Path, base: Path) -> None:
    teacher = load_guided(whole, base, dtype=torch.float32)
    assert isinstance(teacher, EmbedsGuidance)
    assert not isinstance(ToyboxTeacher.load(base), EmbedsGuidance)
    assert teacher.guidance_scales == SCALES
    with pytest.raises(ValueError, match="negative prompt"):
        teacher.encode("a red mushroom", "a car")
    cond = teacher.encode("a red mushroom")
    assert cond.uncond is None
    x, t = noised()
    for lacking in (None, cond, Conditioning(camera=torch.zeros(2, 2))):
        with pytest.raises(ValueError, match=r"cond\.camera"):
            teacher(x, t, lacking)
    scaled = EmbeddedGuidance(teacher, 5.0)(x, t, asked(teacher)).x0
    assert torch.equal(scaled, teacher(x, t, asked(teacher, 5.0)).x0)
    # Without a scale it is the conditional prediction, as it was distilled at 1.
    assert torch.equal(teacher(x, t, asked(teacher)).x0, teacher(x, t, asked(teacher, 1.0)).x0)
    with pytest.raises(ValueError, match=r"1 to 7\.5"):
        EmbeddedGuidance(teacher, 8.0)
