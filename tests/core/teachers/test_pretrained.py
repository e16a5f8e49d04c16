"""Each family against its own diffusers pipeline, both read from the same folder.

Random weights hide a missing scale or shift, SDXL's time ids, a timestep times 1000 and FLUX's
packing as long as nothing else says what is right: here the published pipeline does.
"""

# diffusers' annotations are narrower than what it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import (
    StableDiffusion3InpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.sds import SDS, surrogate_loss
from core.frozen import parameter_sha256
from core.schedule import diffuse
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample
from core.teachers.deepfloyd_if import DeepFloydIFTeacher
from core.teachers.errors import TeacherOptionError
from core.teachers.flux import FluxTeacher, pack, unpack
from core.teachers.pretrained import LatentPretrainedTeacher, PretrainedTeacher
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.stable_diffusion_3 import StableDiffusion3Teacher
from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from core.teachers.teacher import (
    LatentTeacher,
    TeacherOptions,
    decode_from,
    encode_for,
    free_text_encoders,
    noise_shape,
    takes_guidance,
)

PROMPT, NEGATIVE = "a Red mushroom", "blurry"
SCALE, EMBEDDED = 3.0, 2.5
TOLERANCE = 1e-4

SD = (StableDiffusionTeacher, StableDiffusionPipeline, StableDiffusionInpaintPipeline)
XL = (StableDiffusionXLTeacher, StableDiffusionXLPipeline, StableDiffusionXLInpaintPipeline)
SD3 = (StableDiffusion3Teacher, StableDiffusion3Pipeline, StableDiffusion3InpaintPipeline)
FLUX = (FluxTeacher, FluxPipeline, FluxImg2ImgPipeline)
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "sd-eps": SD,
    "sd-v": SD,
    "sdxl": XL,
    "sd3": SD3,
    "sd3-without-t5": SD3,
    "flux-dev": FLUX,
    "flux-schnell": FLUX,
    "if": (DeepFloydIFTeacher, IFPipeline, None),
}
LATENT = [name for name in FAMILIES if name != "if"]
Load = Callable[..., PretrainedTeacher]


@pytest.fixture
def load(tiny_folder: Callable[[str], Path]) -> Load:
    def load_family(name: str, **options: Any) -> PretrainedTeacher:
        options = {"image_size": 16, **options}
        kind: type[PretrainedTeacher] = FAMILIES[name][0]
        return kind.load(tiny_folder(name), options=TeacherOptions(**options))

    return load_family


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    size = float(expected.abs().max())
    assert size > 0.01
    assert float((found - expected).abs().max()) < TOLERANCE * size


def load_pipeline(kind: Any, folder: Path) -> Any:
    """With the deterministic sampler of the same configuration for discrete timesteps."""
    index = json.loads((folder / "model_index.json").read_text())
    left_out = [name for name, entry in index.items() if entry == [None, None]]
    absent = {name: None for name in left_out if name.endswith("_3")}
    pipe = kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False, **absent)
    pipe.set_progress_bar_config(disable=True)
    if "transformer" not in index:
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config,
            clip_sample=False,
            thresholding=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
        )
        pipe.scheduler.register_to_config(variance_type="fixed_small")
    return pipe


def run_pipeline(
    folder: Path, name: str, teacher: PretrainedTeacher, negative: str | None
) -> SimpleNamespace:
    """Four steps of the family's own pipeline: states, times and guided predictions."""
    pipe = load_pipeline(FAMILIES[name][1], folder)
    flow = teacher.folder.has("transformer")
    states: list[Tensor] = []
    predictions: list[Tensor] = []
    step = pipe.scheduler.step

    def watch(output: Tensor, t: Tensor, x: Tensor, *args: Any, **more: Any) -> Any:
        states.append(x)
        predictions.append(output)
        return step(output, t, x, *args, **more)

    pipe.scheduler.step = watch
    side = teacher.image_size
    noise = normal(1, *noise_shape(teacher), seed=3)
    how: dict[str, Any] = {"guidance_scale": SCALE, "latents": noise, "output_type": "latent"}
    if name.startswith("flux"):
        how |= {
            "latents": pack(noise),
            "true_cfg_scale": SCALE,
            "guidance_scale": EMBEDDED,
            "max_sequence_length": teacher.text_readers[1].max_tokens,
        }
    elif name == "if":
        del how["latents"]
        how |= {
            "generator": torch.Generator().manual_seed(3),
            "output_type": "pt",
            "clean_caption": False,
        }
    final = pipe(
        PROMPT,
        negative_prompt=negative,
        height=side,
        width=side,
        num_inference_steps=4,
        return_dict=False,
        **how,
    )[0]
    if flow:
        times = pipe.scheduler.sigmas.double()
    else:
        # The last step ends at the first timestep's noise level.
        times = torch.cat([pipe.scheduler.timesteps, torch.tensor([0])]).double() / 999
    found = [*states, final]
    if name.startswith("flux"):
        side //= 2
        found = [unpack(x, side, side) for x in found]
        predictions = [unpack(x, side, side) for x in predictions]
    return SimpleNamespace(states=found, predictions=predictions, times=times, pipe=pipe)


def conditioning(teacher: PretrainedTeacher, negative: str | None) -> Conditioning:
    cond = teacher.encode(PROMPT, negative or "")
    if cond.guidance_scale is None:
        return cond
    assert cond.uncond is not None
    scale = torch.tensor([EMBEDDED])
    return replace(cond, guidance_scale=scale, uncond=replace(cond.uncond, guidance_scale=scale))


@pytest.mark.parametrize(
    ("name", "negative"), [*((name, NEGATIVE) for name in FAMILIES), ("sdxl", None)]
)
def test_guided_predictions_and_a_sample_are_those_of_the_pipeline(
    name: str, negative: str | None, load: Load, tiny_folder: Callable[[str], Path]
) -> None:
    teacher = load(name)
    run = run_pipeline(tiny_folder(name), name, teacher, negative)
    cond = conditioning(teacher, negative)
    guided = ClassifierFreeGuidance(teacher, SCALE)
    with torch.no_grad():
        for x, t, expected in zip(run.states, run.times, run.predictions, strict=False):
            assert_equal(guided(x, t.expand(1), cond).value, expected)
        final = sample(guided, DDIM(), run.times, run.states[0], cond).x
        assert_equal(final, run.states[-1])
        # Neither text nor time nor guidance is a bystander here.
        x, t = run.states[1], run.times[1].expand(1)
        for other in (
            teacher(x, t, cond).value,
            guided(x, t, conditioning(teacher, "green")).value,
            guided(x, t * 0.9, cond).value,
        ):
            difference = (other - run.predictions[1]).abs().max() / run.predictions[1].abs().max()
            assert difference > 30 * TOLERANCE


@pytest.mark.parametrize("name", LATENT)
def test_images_become_latents_and_latents_images_as_in_the_pipelines(
    name: str, load: Load, tiny_folder: Callable[[str], Path]
) -> None:
    teacher = load(name)
    assert isinstance(teacher, LatentPretrainedTeacher)
    assert isinstance(teacher, LatentTeacher)
    _, kind, kind_from_image = FAMILIES[name]
    pipe = load_pipeline(kind, tiny_folder(name))
    # A posterior without spread: what the pipelines draw from it is then its mean.
    vae = pipe.vae
    last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    last.weight.data[4:] = 0
    last.bias.data[4:] = -100
    x = normal(2, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        expected = kind_from_image._encode_vae_image(
            SimpleNamespace(vae=vae), image=x, generator=torch.Generator()
        )
        found = encode_for(teacher, x)
        assert found.shape[1:] == teacher.latent_shape == noise_shape(teacher)
        assert_equal(found, expected)
    z = normal(1, *teacher.latent_shape)
    latents = pack(z) if name.startswith("flux") else z
    seen: list[Tensor] = []
    decode = vae.decode

    def watch(given: Tensor, *args: Any, **more: Any) -> Any:
        out = decode(given, *args, **more)
        seen.append(out[0])
        return out

    vae.decode = watch
    # The sampler ends where it is told, so that the pipeline decodes exactly `latents`.
    pipe.scheduler.step = lambda *_args, **_more: (latents,)
    pipe("a", height=16, width=16, num_inference_steps=1, output_type="pt")
    assert_equal(decode_from(teacher, z), seen[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_to_the_image_agrees_with_finite_differences(name: str, load: Load) -> None:
    teacher = load(name, dtype="float64")
    before = parameter_sha256(teacher.module)
    x = normal(2, 3, 16, 16, seed=1, dtype=torch.float64).clamp(-1, 1).requires_grad_()
    direction = normal(*x.shape, seed=2, dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    cond = teacher.encode(PROMPT).expand(2)
    guided = ClassifierFreeGuidance(teacher, SCALE)

    def central(function: Callable[[Tensor], Tensor], h: float) -> float:
        with torch.no_grad():
            ahead, behind = function(x + h * direction), function(x - h * direction)
        return float(ahead - behind) / (2 * h)

    # The score's gradient, through the autoencoder to the image.
    z = encode_for(teacher, x)
    eps = normal(*z.shape, seed=4, dtype=torch.float64)
    score = SDS(guided).gradient_at(z.detach(), t, eps, cond)
    (gradient,) = torch.autograd.grad(surrogate_loss(z, score), x)
    expected = central(lambda image: (score * encode_for(teacher, image)).sum(), 1e-4)
    assert abs(expected) > 1e-3
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)

    # And through the denoiser itself, for the methods that differentiate it. Transformers keep
    # some norms and rotations in float32, whose rounding bounds what a difference can show.
    weights = normal(*z.shape, seed=5, dtype=torch.float64)

    def through(image: Tensor) -> Tensor:
        x_t = diffuse(teacher.schedule, encode_for(teacher, image), eps, t)
        return (weights * guided(x_t, t, cond).x0).sum()

    (gradient,) = torch.autograd.grad(through(x), x)
    coarse = teacher.folder.has("transformer")
    expected = central(through, 1e-3 if coarse else 1e-5)
    rel = 2e-3 if coarse else 1e-6
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=rel)
    assert parameter_sha256(teacher.module) == before
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


@pytest.mark.parametrize("name", ["sdxl", "flux-dev", "if"])
def test_text_is_encoded_once_and_its_encoders_can_go(name: str, load: Load) -> None:
    teacher = load(name)
    cond = teacher.encode([PROMPT, "a car"], NEGATIVE)
    assert cond.batch_size == 2
    free_text_encoders(teacher)
    assert not teacher._text_encoders
    x, t = normal(2, *noise_shape(teacher)), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        out = teacher(x, t, cond)
        assert not teacher._text_encoders
        # One sample of the batch is what it is alone.
        alone = teacher(x[1:], t[1:], cond.select([1]))
        assert_equal(alone.value, out.value[1:])
        # Without a conditioning it is the empty prompt's.
        assert_equal(teacher(x, t).value, teacher(x, t, teacher.encode("").expand(2)).value)
    again = load(name, offload_text_encoders=True).encode([PROMPT, "a car"], NEGATIVE)
    assert again.text is not None
    assert cond.text is not None
    assert torch.equal(again.text, cond.text)


def test_the_sizes_that_sdxl_is_told_are_made_once_for_an_image_size(load: Load) -> None:
    teacher = load("sdxl")
    assert isinstance(teacher, StableDiffusionXLTeacher)
    cond = teacher.encode(PROMPT)

    def told(count: int) -> Tensor:
        return teacher.added_conditions(cond.expand(count))["added_cond_kwargs"]["time_ids"]

    first = told(2)
    assert first.tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert told(3).data_ptr() == first.data_ptr()
    teacher.image_size = 24
    assert told(1).tolist() == [[24, 24, 0, 0, 24, 24]]
    assert first.tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    teacher.dtype = torch.float64
    assert told(1).dtype == torch.float64


def test_a_camera_is_nothing_to_a_teacher_of_prompts(load: Load) -> None:
    teacher = load("sd-eps")
    cond = teacher.encode(PROMPT)
    x, t = normal(2, *noise_shape(teacher)), torch.tensor([0.2, 0.9])
    turned = cond.with_camera(torch.tensor([[0.0, 0.0], [90.0, 10.0]]))
    with torch.no_grad():
        guided = ClassifierFreeGuidance(teacher, SCALE)
        assert torch.equal(guided(x, t, turned).value, guided(x, t, cond.expand(2)).value)


def test_what_is_not_read_of_a_long_prompt_is_said(load: Load) -> None:
    # Every letter is a token here.
    long = "mushroom " * 12
    for name, limit in (("sd-eps", 77), ("if", 77)):
        warning = load(name).check_prompt(long).warning
        assert warning is not None
        assert str(limit) in warning
        assert load(name).check_prompt("a mushroom").warning is None
    assert load("sd3").check_prompt(long).warning is None  # T5 reads 256
    # Without T5 nothing reads past CLIP's 77.
    for name, words, limit in (
        ("sd3-without-t5", 12, 77),
        ("sd3", 40, 256),
        ("flux-schnell", 40, 256),
        ("flux-dev", 80, 512),
    ):
        teacher = load(name)
        warning = teacher.check_prompt("mushroom " * words).warning
        assert warning is not None, name
        assert warning.endswith(f"the first {limit}")
        assert teacher.check_prompt("mushroom " * (words // 2)).warning is None


def test_embedded_guidance_is_read_where_the_network_has_it(load: Load) -> None:
    x, t = normal(1, 4, 8, 8), torch.tensor([0.5])
    dev = load("flux-dev")
    cond = dev.encode(PROMPT)
    other = replace(cond, guidance_scale=torch.tensor([1.0]))
    with torch.no_grad():
        assert not torch.allclose(dev(x, t, cond).value, dev(x, t, other).value, atol=1e-3)
        without = replace(cond, guidance_scale=None)
        assert torch.equal(dev(x, t, without).value, dev(x, t, cond).value)
    assert takes_guidance(dev)
    assert load("flux-schnell").encode(PROMPT).guidance_scale is None
    assert not takes_guidance(load("flux-schnell"))
    assert not takes_guidance(load("sd-eps"))


@pytest.mark.parametrize("name", ["sd-eps", "sdxl", "if"])
def test_attention_in_slices_gives_the_same(name: str, load: Load) -> None:
    plain, sliced = load(name), load(name, attention_slicing=True)
    assert isinstance(sliced, StableDiffusionTeacher | DeepFloydIFTeacher)
    assert "Sliced" in "".join(type(p).__name__ for p in sliced.unet.attn_processors.values())
    x, t = normal(2, *noise_shape(plain)).requires_grad_(), torch.tensor([0.5, 0.3])
    cond = plain.encode(PROMPT).expand(2)
    values = [teacher(x, t, cond).value for teacher in (sliced, plain)]
    assert_equal(*(value.detach() for value in values))
    assert_equal(*(torch.autograd.grad(value.square().sum(), x)[0] for value in values))


@pytest.mark.parametrize("name", ["sd-eps", "flux-dev"])
def test_the_autoencoder_computes_again_instead_of_keeping(name: str, load: Load) -> None:
    gradients, calls = [], []
    for checkpoint in (False, True):
        teacher = load(name, checkpoint_vae=checkpoint)
        assert isinstance(teacher, LatentPretrainedTeacher)
        count: list[int] = []
        middle = teacher.autoencoder.vae.encoder.mid_block
        assert middle is not None
        middle.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        x = normal(1, 3, 16, 16).requires_grad_()
        z = encode_for(teacher, x)
        gradients.append(torch.autograd.grad(z.square().sum(), x)[0])
        calls.append(len(count))
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
    assert calls == [1, 2]


def test_an_option_that_a_family_does_not_have_is_refused(load: Load) -> None:
    for name in ("sd3", "flux-dev"):
        with pytest.raises(TeacherOptionError, match="attention_slicing is for UNets"):
            load(name, attention_slicing=True)
    with pytest.raises(TeacherOptionError, match="checkpoint_vae"):
        load("if", checkpoint_vae=True)
    for name, size in (("sd-eps", 17), ("flux-dev", 18), ("if", 15), ("sdxl", 0)):
        with pytest.raises(TeacherOptionError, match=f"image_size is {size}: give a positive"):
            load(name, image_size=size)
    with pytest.raises(TeacherOptionError, match="give auto, float64"):
        load("sd-eps", dtype="int8")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("sd-eps", "float16"),
        ("sdxl", "float16"),
        ("sd3", "float16"),
        ("flux-dev", "bfloat16"),
        ("if", "float16"),
    ],
)
def test_half_precision_holds_the_weights_and_hardly_bends_the_gradient(
    name: str, dtype: str, load: Load
) -> None:
    gradients = []
    for held in ("float32", dtype):
        teacher = load(name, dtype=held)
        network = getattr(teacher, teacher.lora_places.network)
        assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, held)}
        if isinstance(teacher, LatentPretrainedTeacher):
            # The folders here were written by diffusers, whose autoencoder says that it overflows.
            upcast = held == "float16"
            assert teacher.autoencoder.vae.dtype == getattr(torch, "float32" if upcast else held)
        x = normal(2, 3, 16, 16, seed=1).clamp(-1, 1).requires_grad_()
        z = encode_for(teacher, x)
        cond = teacher.encode(PROMPT).expand(2)
        t, eps = torch.tensor([0.3, 0.7]), normal(*z.shape, seed=4)
        score = SDS(ClassifierFreeGuidance(teacher, SCALE)).gradient_at(z.detach(), t, eps, cond)
        # What leaves the teacher is as the image that came in.
        assert z.dtype == score.dtype == torch.float32
        gradients.append(torch.autograd.grad(surrogate_loss(z, score), x)[0].flatten())
    whole, half = gradients
    assert float((half - whole).norm()) < 0.05 * float(whole.norm())
    assert not torch.equal(half, whole)


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        # As published: the folders of Stable Diffusion 1 and 2 do not have the key.
        ("sd-eps", None, torch.float16),
        ("sd-eps", False, torch.float16),
        ("sd-eps", True, torch.float32),
        ("sdxl", None, torch.float32),
        ("sdxl", True, torch.float32),
        ("sdxl", False, torch.float16),
        ("sd3", None, torch.float16),
    ],
)
def test_an_autoencoder_is_float32_where_its_folder_or_its_family_says_so(
    name: str,
    written: bool | None,
    expected: torch.dtype,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / name
    shutil.copytree(tiny_folder(name), folder)
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["force_upcast"]
    path.write_text(json.dumps(config if written is None else config | {"force_upcast": written}))
    kind = FAMILIES[name][0]
    for held, dtype in (("float16", expected), ("bfloat16", torch.bfloat16)):
        teacher = kind.load(folder, options=TeacherOptions(image_size=16, dtype=held))
        weights = {p.dtype for p in teacher.autoencoder.vae.parameters()}
        assert weights == {dtype}
        assert {p.dtype for p in teacher.module[0].parameters()} == {getattr(torch, held)}


def test_the_size_of_the_training_is_the_folders(tiny_folder: Callable[[str], Path]) -> None:
    assert StableDiffusionTeacher.load(tiny_folder("sd-eps")).image_size == 16
    assert StableDiffusion3Teacher.load(tiny_folder("sd3")).image_size == 16
    assert DeepFloydIFTeacher.load(tiny_folder("if")).image_size == 16
    assert FluxTeacher.load(tiny_folder("flux-dev")).image_size == 1024
