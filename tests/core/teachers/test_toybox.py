"""The embedded teacher as a Denoiser: what it reads, what it refuses, what changes its picture."""

import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning, concatenate
from core.schedule import FlowSchedule, diffuse
from core.solvers.ddim import DDIM
from core.solvers.heun import Heun
from core.solvers.sampling import log_snr_times, sample
from core.teachers.errors import TeacherWeightsError, UnknownSubjectError
from core.teachers.teacher import takes_camera
from core.teachers.toybox import MAX_WORDS, ToyboxTeacher, weights_sha256
from core.teachers.toybox_network import (
    MAX_TOKENS,
    make_network,
    make_tokenizer,
    save_network,
)

WORDS = ["a", "red", "blue", "big", "mushroom", "toadstool", "car", "sports", "on", "airplane"]
VOCABULARY: dict[str, object] = {
    "kinds": {
        "mushroom": ["mushroom", "Toadstool"],
        "car": ["car", "sports car"],
        "airplane": ["airplane"],
    },
    "colors": ["red", "blue"],
}
UNET = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder with random weights."""
    folder = tmp_path_factory.mktemp("toybox") / "teacher"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network(len(WORDS) + 4)
        # A new network predicts zero, and its text encoder starts at a scale that hides a word
        # behind rounding; this one draws and listens.
        for parameter in network.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.1)
        for name, parameter in network.text_encoder.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter.data.mul_(20)
    save_network(network, make_tokenizer(WORDS), VOCABULARY, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "teacher"))


@pytest.fixture(scope="module")
def teacher(whole: Path) -> ToyboxTeacher:
    return ToyboxTeacher.load(whole, dtype=torch.float32)


@pytest.fixture
def noised() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 64, 64, generator=g), torch.tensor([0.3, 0.8])


def with_cameras(cond: Conditioning, *cameras: tuple[float, float]) -> Conditioning:
    return cond.with_camera(torch.tensor(cameras))


# --- the folder ------------------------------------------------------------------------------


def test_loads_without_a_network_and_frozen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    loaded = ToyboxTeacher.load(folder)
    assert loaded.weights_sha256 == weights_sha256(folder)
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert loaded.subjects == ("airplane", "car", "mushroom")
    assert loaded.colors == ("red", "blue")


@pytest.mark.parametrize(
    "name", [UNET, TEXT_ENCODER, "tokenizer/tokenizer.json", "vocabulary.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(TeacherWeightsError) as caught:
        ToyboxTeacher.load(folder)
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _flip_a_bit_of_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] ^= 0x80
    path.write_bytes(data)


def _spoil(value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_file(path)
        name = sorted(tensors)[len(tensors) // 2]
        tensors[name].view(-1)[0] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def _leave_a_tensor_out(path: Path) -> None:
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path, metadata={"format": "pt"})


def _reshape_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(7, dtype=torch.float16)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [UNET, TEXT_ENCODER])
@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_a_bit_of_the_header,
        _spoil(math.nan),
        _spoil(math.inf),
        _leave_a_tensor_out,
        _reshape_a_tensor,
    ],
    ids=["truncated", "bit flipped", "nan", "inf", "tensor missing", "tensor of another shape"],
)
def test_damaged_weights_are_refused_by_file(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)
    with pytest.raises(TeacherWeightsError) as caught:
        ToyboxTeacher.load(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert name.split("/")[0] in text.replace(str(folder), "")
    assert "\n" not in text


def test_every_bit_of_the_weights_counts_in_the_hash(folder: Path, whole: Path) -> None:
    for name in (UNET, TEXT_ENCODER, "tokenizer/tokenizer.json", "vocabulary.json"):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(data)
        assert weights_sha256(folder) != weights_sha256(whole), name
        data[-2] ^= 1
        (folder / name).write_bytes(data)
    assert weights_sha256(folder) == weights_sha256(whole)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("instead", [False, True])
def test_pickles_are_never_read(folder: Path, tmp_path: Path, instead: bool) -> None:
    mark = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(mark))
    for name in ("transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"):
        (folder / name).write_bytes(bomb)
    if instead:
        (folder / UNET).unlink()
        with pytest.raises(TeacherWeightsError):
            ToyboxTeacher.load(folder)
        (folder / UNET).write_bytes(bomb)
        with pytest.raises(TeacherWeightsError):
            ToyboxTeacher.load(folder)
    else:
        ToyboxTeacher.load(folder)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # the bomb is live


# --- prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subjects"),
    [
        ("a red mushroom", ("mushroom",)),
        ("A Red TOADSTOOL!", ("mushroom",)),
        ("a blue car on a mushroom", ("car", "mushroom")),
        ("a mushroom on a sports car", ("mushroom", "car")),
        ("a mushroom, a toadstool", ("mushroom",)),
        ("a scar", ()),
        ("", ()),
    ],
)
def test_subjects_are_found_by_whole_words_and_synonyms(
    teacher: ToyboxTeacher, prompt: str, subjects: tuple[str, ...]
) -> None:
    assert teacher.read_prompt(prompt).subjects == subjects


def test_unknown_words_are_named_once_with_the_nearest(teacher: ToyboxTeacher) -> None:
    reading = teacher.check_prompt("a rad rad mushroom")
    assert reading.unknown == (("rad", ("red",)),)
    assert reading.warning is not None
    assert "'rad' (nearest: red)" in reading.warning
    assert teacher.check_prompt("a red mushroom").warning is None


@pytest.mark.parametrize("comma", [False, True])
def test_what_no_token_is_left_for_is_named_and_no_subject(
    teacher: ToyboxTeacher, comma: bool
) -> None:
    if comma:
        words = make_tokenizer([*WORDS, ","])
        teacher = ToyboxTeacher(make_network(len(words)), words, dict(VOCABULARY), "0" * 64)
    # Unknown words take no place, a known comma does.
    fitting = "a zzz " + "big " * (MAX_WORDS - 2 - comma) + ("," if comma else "") + " mushroom"
    tokens = teacher.tokenizer(teacher._known_words(fitting)).input_ids
    assert len(tokens) == MAX_TOKENS
    reading = teacher.read_prompt(fitting)
    assert (reading.subjects, reading.unread) == (("mushroom",), ())
    reading = teacher.check_prompt(f"{fitting} on a car")
    assert (reading.subjects, reading.unread) == (("mushroom",), ("on", "a", "car"))
    assert reading.warning is not None
    assert reading.warning.endswith(
        f"first {MAX_WORDS} of the words and commas that it knows and ignores all from 'on' on"
    )
    short, long = (teacher.encode(text).text for text in (fitting, f"{fitting} on a car"))
    assert short is not None
    assert long is not None
    torch.testing.assert_close(short, long, atol=1e-4, rtol=1e-4)
    # Half of a name is none.
    assert teacher.read_prompt("big " * (MAX_WORDS - 1) + "sports car").subjects == ()
    with pytest.raises(UnknownSubjectError, match=f"reads the first {MAX_WORDS}"):
        teacher.check_prompt("big " * MAX_WORDS + "mushroom")


def test_unknown_words_are_left_out(teacher: ToyboxTeacher) -> None:
    known = teacher.encode("A Red mushroom").text
    assert known is not None
    for prompt in ("A vermilion Red zzz mushroom!", "a (red) mushroom"):
        text = teacher.encode(prompt).text
        assert text is not None
        torch.testing.assert_close(text, known, atol=1e-4, rtol=1e-4)
    other = teacher.encode("a blue mushroom").text
    assert other is not None
    assert (other - known).abs().max() > 0.01


def test_a_prompt_with_nothing_known_is_refused_with_the_nearest(teacher: ToyboxTeacher) -> None:
    with pytest.raises(UnknownSubjectError, match="nearest: airplane"):
        teacher.check_prompt("a red aeroplane")
    with pytest.raises(UnknownSubjectError, match="it knows airplane, car, mushroom"):
        teacher.check_prompt("zzzz")


def test_prompts_become_one_conditioning_with_the_negative_beside(teacher: ToyboxTeacher) -> None:
    cond = teacher.encode(["a red mushroom", "a blue car", "a big car"], "a mushroom")
    assert cond.text is not None
    assert cond.text.shape == (3, 1, 160)
    assert cond.camera is None
    assert not cond.text.requires_grad
    assert cond.uncond is not None
    assert cond.uncond.text is not None
    assert cond.uncond.text.shape == cond.text.shape
    assert cond.uncond.uncond is None
    (negative,) = [c.text for c in [teacher.encode("a mushroom")]]
    assert negative is not None
    torch.testing.assert_close(cond.uncond.text, negative.expand(3, -1, -1), atol=1e-4, rtol=1e-4)
    empty = teacher.encode("a red mushroom").uncond
    assert empty is not None
    assert empty.text is not None
    assert (empty.text - cond.uncond.text[:1]).abs().max() > 0.1
    one = teacher.encode("a red mushroom")
    assert one.text is not None
    assert one.batch_size == 1
    torch.testing.assert_close(one.text, cond.text[:1], atol=1e-4, rtol=1e-4)


# --- predictions -----------------------------------------------------------------------------


def test_text_camera_and_time_each_change_the_picture(
    teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    cond = with_cameras(teacher.encode("a red mushroom"), (0.0, 10.0), (90.0, 10.0))
    x0 = teacher(x, t, cond).x0
    others = {
        "text": teacher(x, t, with_cameras(teacher.encode("a blue car"), (0, 10), (90, 10))).x0,
        "azimuth": teacher(x, t, with_cameras(cond.select([0]), (180, 10), (270, 10))).x0,
        "elevation": teacher(x, t, with_cameras(cond.select([0]), (0, 60), (90, 60))).x0,
        "time": teacher(x, t + 0.1, cond).x0,
        "image": teacher(x + 0.1, t, cond).x0,
    }
    for name, other in others.items():
        assert ((other - x0).abs().amax(dim=(1, 2, 3)) > 1e-4).all(), name


def test_a_teacher_of_words_alone_looks_at_no_camera(
    teacher: ToyboxTeacher, folder: Path, noised: tuple[Tensor, Tensor]
) -> None:
    (folder / "vocabulary.json").write_text(json.dumps({**VOCABULARY, "takes_camera": False}))
    words = ToyboxTeacher.load(folder, dtype=torch.float32)
    assert takes_camera(teacher)
    assert not takes_camera(words)
    x, t = noised
    cond = teacher.encode("a red mushroom")
    seen = with_cameras(cond, (0.0, 10.0), (90.0, 10.0))
    assert not torch.equal(teacher(x, t, seen).x0, teacher(x, t, cond).x0)
    assert torch.equal(words(x, t, seen).x0, teacher(x, t, cond).x0)
    assert words.weights_sha256 != teacher.weights_sha256


def test_no_camera_is_the_same_as_nan_in_every_row(
    teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    cond = teacher.encode("a red mushroom")
    dropped = teacher(x, t, cond).x0
    nan = math.nan
    assert torch.equal(teacher(x, t, with_cameras(cond, (nan, nan), (nan, nan))).x0, dropped)
    mixed = teacher(x, t, with_cameras(cond, (nan, nan), (45.0, 10.0))).x0
    torch.testing.assert_close(mixed[0], dropped[0], atol=1e-4, rtol=1e-4)
    assert (mixed[1] - dropped[1]).abs().max() > 1e-4
    assert mixed.isfinite().all()


def test_without_a_conditioning_it_is_the_empty_prompt(
    teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    expected = teacher(x, t, teacher.encode("")).x0
    assert torch.equal(teacher(x, t).x0, expected)
    camera = torch.tensor([[0.0, 20.0], [50.0, 20.0]])
    torch.testing.assert_close(
        teacher(x, t, Conditioning(camera=camera)).x0,
        teacher(x, t, teacher.encode("").with_camera(camera)).x0,
    )


def test_the_prediction_lies_on_the_flow_path(
    teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    prediction = teacher(x, t, teacher.encode("a red mushroom"))
    assert isinstance(teacher.schedule, FlowSchedule)
    at = t[:, None, None, None]
    torch.testing.assert_close((1 - at) * prediction.x0 + at * prediction.eps, x)
    torch.testing.assert_close(
        prediction.velocity, prediction.eps - prediction.x0, atol=1e-5, rtol=1e-5
    )
    again = diffuse(teacher.schedule, prediction.x0, prediction.eps, t)
    torch.testing.assert_close(again, x)
    assert not prediction.x0.requires_grad


def test_one_call_of_guidance_is_two_calls(
    teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    cond = with_cameras(teacher.encode("a red mushroom", "a car"), (0.0, 10.0), (90.0, 10.0))
    assert cond.uncond is not None
    plain = Conditioning(text=cond.text, camera=cond.camera)
    conditional, unconditional = teacher(x, t, plain).x0, teacher(x, t, cond.uncond).x0
    assert (conditional - unconditional).abs().max() > 1e-3
    both = teacher(x.repeat(2, 1, 1, 1), t.repeat(2), concatenate([plain, cond.uncond])).x0
    torch.testing.assert_close(both, torch.cat([conditional, unconditional]), atol=2e-5, rtol=1e-4)
    guided = ClassifierFreeGuidance(teacher, 4.0)(x, t, cond)
    expected = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(guided.x0, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)], ids=["f32", "bf16"]
)
def test_samples_of_a_batch_do_not_meet(
    whole: Path, noised: tuple[Tensor, Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    teacher = ToyboxTeacher.load(whole, dtype=dtype)
    x, t = noised
    cond = with_cameras(teacher.encode(["a red mushroom", "a blue car"]), (0, 10), (200, 50))
    together = teacher(x, t, cond).x0
    assert together.dtype == torch.float32
    for i in range(2):
        alone = teacher(x[i : i + 1], t[i : i + 1], cond.select([i])).x0
        torch.testing.assert_close(together[i : i + 1], alone, atol=tolerance, rtol=tolerance)
    swapped = teacher(x.flip(0), t.flip(0), cond.select([1, 0])).x0
    torch.testing.assert_close(swapped.flip(0), together, atol=tolerance, rtol=tolerance)


def test_bfloat16_is_near_float32(
    whole: Path, teacher: ToyboxTeacher, noised: tuple[Tensor, Tensor]
) -> None:
    x, t = noised
    low = ToyboxTeacher.load(whole, dtype=torch.bfloat16)
    cond = with_cameras(teacher.encode("a red mushroom"), (0.0, 10.0), (90.0, 10.0))
    exact = teacher(x, t, cond).x0
    assert (low(x, t, cond).x0 - exact).square().mean() < 1e-3 * exact.square().mean()


@contextmanager
def _counting(teacher: ToyboxTeacher) -> Iterator[list[int]]:
    sizes: list[int] = []
    handle = teacher.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_pictures_are_sampled(teacher: ToyboxTeacher, solver: DDIM | Heun) -> None:
    guided = ClassifierFreeGuidance(teacher, 2.0)
    cond = with_cameras(teacher.encode("a red mushroom"), (0.0, 20.0), (120.0, 20.0))
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 0, 5)
    with torch.no_grad(), _counting(teacher) as sizes:
        path = sample(guided, solver, times, noise, cond, torch.Generator().manual_seed(1))
    assert path.x.shape == noise.shape
    assert path.x.isfinite().all()
    assert (path.x - noise).abs().max() > 0.1
    assert path.nfe == len(sizes)
    assert set(sizes) == {4}  # each a batch of both predictions


def test_times_even_in_log_snr_serve_too(teacher: ToyboxTeacher) -> None:
    times = log_snr_times(teacher.schedule, 0.95, 0.05, 3)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = sample(teacher, DDIM(), times, noise, teacher.encode("a red mushroom"))
    assert path.x.isfinite().all()
