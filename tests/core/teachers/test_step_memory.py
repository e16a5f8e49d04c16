"""The memory of a step, counted on outlines, against what a real step really keeps and holds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.teachers.folder import TeacherFolder, read_folder
from core.teachers.memory_trace import MemoryTrace
from core.teachers.pretrained import PretrainedTeacher
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.teacher import TeacherOptions, encode_for
from sds3d import cli, doctor, doctor_teachers
from sds3d import step_memory as step_memory_module
from sds3d.optimize_config import OptimizeConfig
from sds3d.step_memory import StepMemory, step_memory
from sds3d.teachers import family

MIB = 2**20
Load = Callable[..., PretrainedTeacher]


@pytest.fixture
def load(tiny_folder: Callable[[str], Path]) -> Load:
    def load_on(name: str, device: str, **options: Any) -> PretrainedTeacher:
        folder, how = tiny_folder(name), TeacherOptions(**{"image_size": 32, **options})
        return family(read_folder(folder)).load(folder, device=device, options=how)

    return load_on


def tensors_of(teacher: PretrainedTeacher) -> list[Tensor]:
    return [*teacher.module.parameters(), *teacher.module.buffers()]


def test_what_is_alive_is_counted_once_and_no_longer_than_it_lives() -> None:
    weights = torch.zeros(MIB // 4)
    with MemoryTrace("cpu") as trace:
        trace.count([weights, weights])
        assert trace.live == MIB
        view = weights.view(2, -1).t()
        doubled = 2 * view
        assert trace.live == 2 * MIB
        del doubled
        assert trace.live == MIB
        assert trace.peak == 2 * MIB
        # What a backward pass will want lives until it was made.
        leaf = torch.ones(MIB // 4, requires_grad=True)
        loss = leaf.exp().sum()
        assert MIB < trace.live - 2 * MIB < MIB + 100
        loss.backward()
        del loss
        assert trace.live == 3 * MIB  # with the gradient
    outside = torch.ones(9)
    assert outside.sum() == 9
    assert trace.live == 3 * MIB


def test_questions_about_values_that_there_are_none_of_are_answered_as_if_all_were_sound() -> None:
    x = torch.zeros(3, device="meta")
    with MemoryTrace("meta"):
        assert bool((x > 1).all())
        assert not bool((x > 1).any())
        assert bool(torch.isfinite(x.sum()))
        assert x.sum().to("cpu") == 1
        # As a loop reads several answers at once.
        assert torch.isfinite(x).float().tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(RuntimeError, match="meta"):
        bool(x.sum())


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "sd3", "flux-dev", "if"])
def test_an_outline_keeps_what_a_real_pass_saves(name: str, load: Load) -> None:
    """By torch's own hooks on what autograd saves, an image's way through encoder and denoiser."""

    def answer(teacher: PretrainedTeacher, x: Tensor, cond: Any) -> Tensor:
        z = encode_for(teacher, x)
        return teacher(z, torch.full((2,), 0.5, device=z.device), cond).value

    real = load(name, "cpu")
    cond = real.encode("a red mushroom").expand(2)
    known = {t.untyped_storage()._cdata for t in [*tensors_of(real), *cond._tensors()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    x = torch.zeros(2, 3, 32, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = answer(real, x, cond)
    for tensor in (x, out):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
    expected = sum(storage.nbytes() for key, storage in saved.items() if key not in known)

    outline = load(name, "meta")
    with MemoryTrace("meta") as trace:
        cond = outline.encode("a red mushroom").expand(2)
        outline.free_text_encoders()
        trace.count([*tensors_of(outline), *cond._tensors()])
        before = trace.live
        x = torch.zeros(2, 3, 32, 32, device="meta", requires_grad=True)
        out = answer(outline, x, cond)
        found = trace.live - before
    assert expected > 100_000
    # Kernels differ a little in what they copy to lay it out anew.
    assert found == pytest.approx(expected, rel=0.04)


OPTIONS = OptimizeConfig(views_per_step=2, view_prompts="interpolated")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sd-eps", {}),
        ("sd-eps", {"method": "vsd"}),
        ("flux-dev", {}),
        ("if", {"perp_neg": True}),
    ],
)
def test_a_step_of_an_outline_takes_what_a_real_one_does(
    name: str, changed: dict[str, Any], load: Load
) -> None:
    options = replace(OPTIONS, **changed)
    real = step_memory(load(name, "cpu"), options)
    outline = step_memory(load(name, "meta"), options)
    assert outline.weights == real.weights
    assert outline.peak == pytest.approx(real.peak, rel=0.02)
    assert outline.peak > 1.5 * outline.weights


def test_options_that_take_more_or_less_are_seen(load: Load) -> None:
    def needs(changed: dict[str, Any] | None = None, **held: Any) -> StepMemory:
        return step_memory(load("sd-eps", "meta", **held), replace(OPTIONS, **(changed or {})))

    plain = needs()
    assert needs({"views_per_step": 4}).peak - plain.weights > 1.8 * (plain.peak - plain.weights)
    assert needs(image_size=64).peak > 2 * plain.peak
    assert needs(checkpoint_vae=True).peak < plain.peak
    half = needs(dtype="bfloat16")
    assert half.weights < 0.6 * plain.weights
    assert half.peak < 0.7 * plain.peak
    assert needs({"latent": True}).peak < plain.peak


@pytest.mark.parametrize(
    ("method", "flag"),
    [("sjc", "perturbations"), ("ism", "ode_steps"), ("sdi", "ode_steps"), ("hifa", "ode_steps")],
)
def test_a_long_loop_of_passes_holds_what_two_of_them_hold(
    method: Any, flag: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    call = StableDiffusionTeacher.__call__

    def count(self: Any, *given: Any) -> Any:
        passes[-1] += 1
        return call(self, *given)

    monkeypatch.setattr(StableDiffusionTeacher, "__call__", count)
    changed: dict[str, Any] = {"method": method, flag: 5}
    options = OptimizeConfig(**changed)
    found = []
    for most in (step_memory_module._PASSES, 99):
        monkeypatch.setattr(step_memory_module, "_PASSES", most)
        passes.append(0)
        found.append(step_memory(load("sd-eps", "meta"), options))
    assert found[0] == found[1]
    assert passes[1] > passes[0] + 2


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev", "if"])
def test_an_outline_asks_its_text_encoders_once_for_as_many_texts(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = PretrainedTeacher._ask

    def count(self: PretrainedTeacher, reader: Any, *given: Any) -> Any:
        asked.append(reader.encoder)
        return ask(self, reader, *given)

    monkeypatch.setattr(PretrainedTeacher, "_ask", count)
    outline, real = load(name, "meta"), load(name, "cpu")
    with MemoryTrace("meta") as trace:
        for texts in (["a mug", "a car"], ["a ball", "a tree"], ["a house"]):
            found, expected = outline.encode(texts), real.encode(texts)
            outline.free_text_encoders()
            held: dict[int, int] = {}
            for given, wanted in ((found, expected), (found.uncond, expected.uncond)):
                assert given is not None
                assert wanted is not None
                for tensor, like in zip(given._tensors(), wanted._tensors(), strict=True):
                    assert tensor.device.type == "meta"
                    assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
                    held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            # And nothing else is kept of it.
            assert trace.live == sum(held.values())
    readers = [reader.encoder for reader in outline.text_readers]
    # Two texts and one; the real teacher six times, for a text to contrast with each time.
    assert sorted(asked) == sorted((2 + 6) * readers)


def test_an_outline_reads_no_weights(
    load: Load, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(_: object) -> str:
        raise AssertionError("no weights may be read")

    monkeypatch.setattr(TeacherFolder, "sha256", unread)
    outline = load("sdxl", "meta")
    assert all(tensor.device.type == "meta" for tensor in tensors_of(outline))
    with pytest.raises(AssertionError, match="no weights"):
        _ = outline.weights_sha256


def test_the_doctor_says_what_a_step_takes_and_whether_that_is_there(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = str(tiny_folder("sd-eps"))
    for check in ("_teacher", "_encoding", "_cuda_kernels", "_tinycudann", "_validator", "_ffmpeg"):
        monkeypatch.setattr(doctor, check, lambda: [])
    assert cli.main(["doctor", "--teacher", folder, "--preset", "luciddreamer"]) == 0
    (line,) = [words for words in capsys.readouterr().out.splitlines() if "teacher step" in words]
    assert "--preset luciddreamer (ism, 4 views of 16 px) takes 0.00 GiB in a step" in line
    assert "with checkpoint_vae = true in" in line
    assert "not measured on a GPU" in line
    monkeypatch.setattr(doctor_teachers, "total_memory", lambda _: 200_000)
    found = {finding.name: finding for finding in doctor.teacher_findings(folder)}
    assert found["teacher memory"].status == "ok"
    assert found["teacher step"].status == "problem"
    assert "--preset dreamfusion (sds, 1 view of 16 px)" in found["teacher step"].text
    assert "smaller image_size or another teacher" in found["teacher step"].text
    # What the options ask of a teacher and cannot have is said too.
    (*_, refused) = doctor.teacher_findings(str(tiny_folder("sdxl")), "latent-nerf")
    assert refused.status == "problem"
    assert "--latent is True" in refused.text
