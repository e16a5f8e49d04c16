"""A learning twin: the teacher to the bit at first, told the camera, and no harm to the teacher."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.frozen import freeze, parameter_sha256
from core.teachers.deepfloyd_if import DeepFloydIFTeacher
from core.teachers.flux import FluxTeacher
from core.teachers.lora import LoraDenoiser, adapt
from core.teachers.pretrained import PretrainedTeacher
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.stable_diffusion_3 import StableDiffusion3Teacher
from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from core.teachers.teacher import TakesLora, TeacherOptions, noise_shape
from core.teachers.toybox import ToyboxTeacher
from core.teachers.toybox_network import make_network, make_tokenizer
from core.teachers.unet import UNET_LORA
from sds3d.optimize import Optimization, StepClock
from sds3d.optimize_config import OptimizeConfig
from sds3d.presets import generate_config

FAMILIES: dict[str, type[PretrainedTeacher]] = {
    "sd-v": StableDiffusionTeacher,
    "sdxl": StableDiffusionXLTeacher,
    "sd3": StableDiffusion3Teacher,
    "flux-dev": FluxTeacher,
    "if": DeepFloydIFTeacher,
}
CAMERA = torch.tensor([[0.0, 10.0], [120.0, 40.0]])


def toybox(dtype: torch.dtype = torch.float32, *, takes_camera: bool = True) -> ToyboxTeacher:
    words = ["a", "red", "ball"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(len(words) + 4)
        for parameter in network.parameters():
            # What starts at zero would let no gradient through.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    vocabulary = {
        "kinds": {"ball": ["ball"]},
        "colors": ["red"],
        "takes_camera": takes_camera,
    }
    return ToyboxTeacher(network, make_tokenizer(words), vocabulary, "0" * 64, dtype=dtype)


@pytest.fixture(params=[*FAMILIES, "toybox", "toybox-words"])
def teacher(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Any:
    if request.param.startswith("toybox"):
        return toybox(takes_camera=request.param == "toybox")
    options = TeacherOptions(dtype="float32", image_size=16)
    found = FAMILIES[request.param].load(tiny_folder(request.param), options=options)
    freeze(found.module)
    return found


def question(teacher: Any) -> tuple[Tensor, Tensor, Conditioning]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, *noise_shape(teacher), generator=g)
    return x, torch.tensor([0.3, 0.8]), teacher.encode("a red ball").with_camera(CAMERA)


def twin_of(teacher: Any, seed: int = 0) -> LoraDenoiser:
    assert isinstance(teacher, TakesLora)
    twin = teacher.adapt(4, torch.Generator().manual_seed(seed))
    assert isinstance(twin, LoraDenoiser)
    return twin


def train(twin: LoraDenoiser, teacher: Any, steps: int = 3) -> None:
    x, t, cond = question(teacher)
    optimizer = torch.optim.Adam(twin.trainable.values(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        twin(x, t, cond).value.square().mean().backward()
        optimizer.step()


@torch.no_grad()
def answer(denoiser: Any, teacher: Any, camera: Tensor | None = CAMERA) -> Tensor:
    x, t, cond = question(teacher)
    return denoiser(x, t, replace(cond, camera=camera)).value


def test_a_twin_is_the_teacher_at_first_and_learns_without_changing_it(teacher: Any) -> None:
    before = parameter_sha256(teacher.module)
    state = torch.random.get_rng_state()
    twin = twin_of(teacher)
    assert torch.equal(torch.random.get_rng_state(), state)
    for camera in (CAMERA, None):
        expected = answer(teacher, teacher, camera)
        assert torch.equal(answer(twin, teacher, camera), expected)
    train(twin, teacher)
    learnt = answer(twin, teacher)
    assert not torch.allclose(learnt, answer(teacher, teacher), rtol=1e-3, atol=1e-5)
    assert parameter_sha256(teacher.module) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
    # It learnt of the camera too, also where the teacher knows nothing of it.
    assert not torch.equal(learnt, answer(twin, teacher, CAMERA.flip(0)))


def test_every_attention_is_adapted_and_nothing_else_but_the_camera(teacher: Any) -> None:
    network = getattr(teacher, teacher.lora_places.network)
    wanted = set()
    for name, module in network.named_modules():
        if isinstance(module, Attention | FluxAttention):
            for part, layer in module.named_modules():
                if isinstance(layer, nn.Linear):
                    wanted.add(f"{name}.{part}")
    adapted = {name.partition(".lora_")[0] for name in twin_of(teacher).trainable}
    place = teacher.lora_places.time_embedding
    camera = set() if place is None else {f"{place}.embedding.hidden", f"{place}.embedding.out"}
    assert wanted
    assert adapted == wanted | camera


def test_a_twin_holds_no_weight_twice(teacher: Any) -> None:
    twin: Any = twin_of(teacher)
    network = getattr(teacher, teacher.lora_places.network)
    own: Any = getattr(twin._denoiser, teacher.lora_places.network)
    frozen = [p for p in own.parameters() if not p.requires_grad]
    assert {id(p) for p in frozen} == {id(p) for p in network.parameters()}
    assert len(twin.trainable) + len(frozen) == len(list(own.parameters()))


@pytest.mark.parametrize("context", [768, 1024])
def test_a_twin_of_the_published_sizes_learns_what_a_lora_on_all_attention_holds(
    context: int,
) -> None:
    """Stable Diffusion 1.5 and 2.1: rank 4 on all attention, by their shapes and by hand."""
    linear: dict[str, Any] = {
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=context, **(linear if context == 1024 else {})
        )
    freeze(unet)
    teacher: Any = SimpleNamespace(unet=unet)
    twin = adapt(teacher, UNET_LORA, rank=4, generator=torch.Generator().manual_seed(0))
    widths = 2 * [320, 640, 1280] + [1280] + 3 * [1280, 640, 320]
    # Eight layers in a block: six from width to width, and two from the text's.
    by_hand = sum(4 * (6 * 2 * width + 2 * (context + width)) for width in widths)
    learnt = {name: p.numel() for name, p in twin.trainable.items()}
    assert sum(n for name, n in learnt.items() if ".lora_" in name) == by_hand
    assert by_hand == {768: 797_184, 1024: 829_952}[context]
    # The camera's embedding beside them, which is smaller still.
    assert 0 < sum(n for name, n in learnt.items() if ".lora_" not in name) < by_hand
    assert sum(learnt.values()) < 0.0015 * sum(p.numel() for p in unet.parameters())


def test_what_learns_is_drawn_from_its_generator_alone() -> None:
    teacher = toybox()

    def drawn(global_seed: int, seed: int) -> Iterable[Tensor]:
        torch.manual_seed(global_seed)
        return list(twin_of(teacher, seed).trainable.values())

    first, second, other = drawn(1, 0), drawn(2, 0), drawn(1, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_network_of_half_precision_learns_in_full_precision() -> None:
    teacher = toybox(torch.bfloat16)
    twin = twin_of(teacher)
    assert torch.equal(answer(twin, teacher), answer(teacher, teacher))
    assert {p.dtype for p in twin.trainable.values()} == {torch.float32}
    train(twin, teacher)
    assert all(bool(p.isfinite().all()) for p in twin.trainable.values())
    assert not torch.equal(answer(twin, teacher), answer(teacher, teacher))


@pytest.mark.parametrize("name", ["sd-v", "flux-dev"])
def test_the_loop_goes_on_from_a_state_to_the_same_bits(
    name: str, tiny_folder: Callable[[str], Path]
) -> None:
    options = TeacherOptions(dtype="float32", image_size=16)
    teacher = FAMILIES[name].load(tiny_folder(name), options=options)
    before = parameter_sha256(teacher.module)
    chosen = OptimizeConfig(
        target="image", method="vsd", steps=4, guidance_scale=7.5, view_prompts="discrete"
    )
    config = generate_config(prompt="a red ball", device="cpu", optimize=chosen)
    loop = Optimization(config, teacher)
    start = loop.tensors()
    for _ in range(2):
        assert loop.advance(StepClock()).finite
    saved = loop.tensors(), loop.meta()
    assert all(not torch.equal(start[key], saved[0][key]) for key in start if ".lora_B." in key)
    assert not torch.equal(start["pixels"], saved[0]["pixels"])
    other = Optimization(config, teacher)
    other.load(*saved)
    for each in (loop, other):
        each.advance(StepClock())
    expected, found = loop.tensors(), other.tensors()
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    assert parameter_sha256(teacher.module) == before
