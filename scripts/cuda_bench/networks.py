"""Of scripts/bench_cuda.py: networks of published shapes and random weights, as teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cuda_bench.measure import Setting

__all__ = ["Size", "UNet", "make_unet", "make_vae", "vae_dtype"]

Size = Literal["sd21", "sdxl"]


@dataclass(frozen=True, eq=False)
class UNet:
    """A network on latents [B, 4, h, w]; `ask` is the guided answer, of two samples for each."""

    network: nn.Module
    ask: Callable[[Tensor], Tensor]

    @property
    def as_teacher(self) -> object:
        """What `core.teachers.graphs.graphed` takes."""
        return SimpleNamespace(lora_places=SimpleNamespace(network="unet"), unet=self.network)


# The library's signatures say less than they take: a number of heads for each level, for one.
_SHAPES: dict[Size, dict[str, Any]] = {
    "sd21": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_SMALL: dict[Size, dict[str, Any]] = {
    "sd21": {
        "block_out_channels": (32, 32, 32, 32),
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
    },
    "sdxl": {
        "block_out_channels": (32, 32, 32),
        "transformer_layers_per_block": (1, 1, 1),
        "cross_attention_dim": 8,
        "attention_head_dim": (2, 2, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}


def make_unet(size: Size, setting: Setting) -> UNet:
    """A UNet of the published shape, in float16 on CUDA."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    shape = _SHAPES[size] | (_SMALL[size] if setting.small else {})
    device, dtype = setting.device, _dtype(setting)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, **shape)
    nn.Module.to(unet, dtype=dtype)
    unet.requires_grad_(False).eval()
    text = torch.randn(2, 77, shape["cross_attention_dim"], device=device, dtype=dtype)
    step = torch.tensor(500, device=device)
    added = None
    if size == "sdxl":
        width = (
            shape["projection_class_embeddings_input_dim"] - 6 * shape["addition_time_embed_dim"]
        )
        added = {
            "text_embeds": torch.randn(2, width, device=device, dtype=dtype),
            "time_ids": torch.full((2, 6), 512.0, device=device, dtype=dtype),
        }

    @torch.no_grad()
    def ask(latents: Tensor) -> Tensor:
        twice = latents.to(dtype).expand(2, -1, -1, -1)
        answer = unet(twice, step, text, added_cond_kwargs=added).sample
        uncond, cond = answer.float().chunk(2)
        return uncond + 7.5 * (cond - uncond)

    return UNet(unet, ask)


def vae_dtype(size: Size, device: torch.device) -> torch.dtype:
    """What the teacher of that size computes its autoencoder in, of a folder that says nothing."""
    from core.teachers.stable_diffusion import StableDiffusionTeacher
    from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

    teacher = StableDiffusionXLTeacher if size == "sdxl" else StableDiffusionTeacher
    half = device.type == "cuda" and not teacher.vae_overflows
    return torch.float16 if half else torch.float32


def make_vae(size: Size, setting: Setting) -> Callable[[Tensor], Tensor]:
    """Stable Diffusion's encoder by its shape: images [B, 3, H, W] to latents, differentiable.

    That of SDXL has the same shape and computes in float32.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    # Here too the signature says less than it takes.
    shape: dict[str, Any] = {
        "block_out_channels": (32,) * 4 if setting.small else (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device(setting.device):
        vae: Any = AutoencoderKL(**shape, layers_per_block=2, latent_channels=4)
    dtype = vae_dtype(size, setting.device)
    nn.Module.to(vae, dtype=dtype)
    vae.requires_grad_(False).eval()

    def encode(images: Tensor) -> Tensor:
        return 0.18215 * vae.encode(images.to(dtype)).latent_dist.mean.float()

    return encode


def _dtype(setting: Setting) -> torch.dtype:
    return torch.float16 if setting.device.type == "cuda" else torch.float32
