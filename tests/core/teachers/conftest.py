"""Whole pipelines of every family at tiny size with random weights, saved as a user has them."""

# diffusers' annotations are narrower than what it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 8
LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
LATENT_BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def clip(kind: type[Any]) -> tuple[Any, CLIPTokenizer]:
    config = CLIPTextConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = kind(config)
    for name, parameter in model.named_parameters():
        if "embedding" in name:  # they start at a scale that hides a word behind rounding
            parameter.data.normal_()
    names = ["<|startoftext|>", "<|endoftext|>", *LETTERS]
    vocabulary = {name: i for i, name in enumerate(names)}
    return model, CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5(width: int) -> tuple[T5EncoderModel, T5TokenizerFast]:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in ascii_lowercase]
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=width,
        d_kv=4,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
    )
    return T5EncoderModel(config), T5TokenizerFast(
        vocab=vocabulary, extra_ids=0, model_max_length=512
    )


def vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        **changes,
    )


def unet(cross_attention_dim: int = WIDTH, **changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }
    return UNet2DConditionModel(cross_attention_dim=cross_attention_dim, **options | changes)


def stable_diffusion(prediction_type: str) -> StableDiffusionPipeline:
    encoder, tokenizer = clip(CLIPTextModel)
    scheduler = PNDMScheduler(**LATENT_BETAS, prediction_type=prediction_type, skip_prk_steps=True)
    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(use_linear_projection=prediction_type == "v_prediction"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    first, tokenizer = clip(CLIPTextModel)
    second, tokenizer_2 = clip(CLIPTextModelWithProjection)
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet(
            2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(**LATENT_BETAS),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def stable_diffusion_3(with_t5: bool) -> StableDiffusion3Pipeline:
    first, tokenizer = clip(CLIPTextModelWithProjection)
    second, tokenizer_2 = clip(CLIPTextModelWithProjection)
    third, tokenizer_3 = t5(32) if with_t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    parts: dict[str, Any] = {"text_encoder_3": third, "tokenizer_3": tokenizer_3}
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        **parts,
    )


def flux(guidance_embeds: bool) -> FluxPipeline:
    encoder, tokenizer = clip(CLIPTextModel)
    encoder_2, tokenizer_2 = t5(16)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=16,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
        vae=vae(
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def deepfloyd_if() -> IFPipeline:
    encoder, tokenizer = t5(16)
    network = unet(
        32,
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        encoder_hid_dim=16,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    return IFPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=network,
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "sd-eps": lambda: stable_diffusion("epsilon"),
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
    "sd3": lambda: stable_diffusion_3(True),
    "sd3-without-t5": lambda: stable_diffusion_3(False),
    "flux-dev": lambda: flux(True),
    "flux-schnell": lambda: flux(False),
    "if": deepfloyd_if,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, by the names of `MAKERS`; not to be changed."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("tiny") / name
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                MAKERS[name]().save_pretrained(made[name])
        return made[name]

    return folder
