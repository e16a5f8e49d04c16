"""Make a teacher's folder of MVDream's file: python -m core.teachers.convert_mvdream FILE.pt FOLDER

The authors publish one pickled state dict in the layout of Latent Diffusion's code, for Stable
Diffusion 2.1 (`sd-v2.1-base-4view.pt`) and 1.5 (`sd-v1.5-4view.pt`). It is read with torch's
restricted unpickler, which rebuilds tensors and plain containers and refuses everything else, and
written as safetensors in the diffusers format. The shapes of the networks are those of the tensors;
a tensor without a place, or a place without its tensor, is an error.

CLIP's vocabulary is not in the file: it comes from --tokenizer, the `tokenizer` folder of any
Stable Diffusion 1 or 2, or from the hub's files on this machine.
"""

# diffusers decorates its methods with types that hide their own; transformers makes some names at
# run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from core.teachers.ldm_names import autoencoder_tensors, open_clip_tensors, unet_tensors
from core.teachers.mvdream_unet import CAMERA_DIM, MultiViewUNet

__all__ = ["convert", "main"]

TOKENIZER_ID = "openai/clip-vit-large-patch14"
MAX_TOKENS = 77
HEAD_WIDTH = 64
"""Of the attention heads in Stable Diffusion 2's UNet and in every CLIP text encoder."""
SD1_HEADS = 8
LATENT_SIDE = 32
SCALING_FACTOR = 0.18215
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def convert(checkpoint: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the teacher's folder of a published file.

    Raises ValueError where the file holds something else or there is no vocabulary, and where
    `folder` already has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a new folder")
    words = _tokenizer(tokenizer)
    tensors = _read(checkpoint)
    try:
        scheduler = _scheduler(tensors)
        unet = _unet(unet_tensors(_part(tensors, "model.diffusion_model.")))
        vae = _vae(autoencoder_tensors(_part(tensors, "first_stage_model.")))
        text_encoder = _text_encoder(_part(tensors, "cond_stage_model."), words)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{checkpoint} is no MVDream's state dict ({reason})") from error
    parts = {
        "unet": ("core.teachers.mvdream_unet", unet),
        "vae": ("diffusers", vae),
        "text_encoder": ("transformers", text_encoder),
        "tokenizer": ("transformers", words),
        "scheduler": ("diffusers", scheduler),
    }
    index: dict[str, Any] = {"_class_name": "MVDreamTeacher"}
    for name, (library, part) in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [library, type(part).__name__]
    # The folder is a teacher's when all of it is there.
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _read(checkpoint: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{checkpoint} holds more than weights, or is damaged") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{checkpoint} holds something else than named tensors")
    return tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    if not found:
        raise ValueError(f"it has no {prefix}*")
    return found


def _scheduler(tensors: dict[str, Tensor]) -> DDIMScheduler:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    found = tensors["alphas_cumprod"].to(scheduler.alphas_cumprod)
    if found.shape != scheduler.alphas_cumprod.shape or not torch.allclose(
        found, scheduler.alphas_cumprod, atol=1e-4
    ):
        raise ValueError("it was trained on another noise schedule")
    return scheduler


def _unet(tensors: dict[str, Tensor]) -> MultiViewUNet:
    channels = _widths(tensors, "down_blocks")
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(len(channels))]
    linear = tensors["mid_block.attentions.0.proj_in.weight"].ndim == 2
    text = tensors["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    unet = MultiViewUNet(
        sample_size=LATENT_SIDE,
        block_out_channels=channels,
        layers_per_block=_count(tensors, "down_blocks.0.resnets."),
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        cross_attention_dim=text.shape[1],
        use_linear_projection=linear,
        # By its name the number of channels in a head, in truth the number of heads.
        attention_head_dim=[width // HEAD_WIDTH for width in channels] if linear else SD1_HEADS,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=CAMERA_DIM,
    )
    unet.load_state_dict(tensors)
    return unet


def _vae(tensors: dict[str, Tensor]) -> AutoencoderKL:
    channels = _widths(tensors, "encoder.down_blocks")
    vae = AutoencoderKL(
        force_upcast=False,  # Stable Diffusion 2.1's, which computes in float16
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        layers_per_block=_count(tensors, "encoder.down_blocks.0.resnets."),
        latent_channels=tensors["decoder.conv_in.weight"].shape[1],
        sample_size=LATENT_SIDE * 2 ** (len(channels) - 1),
        scaling_factor=SCALING_FACTOR,
    )
    vae.load_state_dict(tensors)
    return vae


def _text_encoder(tensors: dict[str, Tensor], tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """OpenCLIP's tower up to its last block but one, or CLIP's own as transformers has it.

    OpenCLIP pads with token 0 and CLIP with the token that ends a text: `tokenizer` is told so.
    """
    if "model.token_embedding.weight" in tensors:
        tower = {k.removeprefix("model."): v for k, v in tensors.items()}
        found = open_clip_tensors(tower, _count(tower, "transformer.resblocks.") - 1)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        activation = "gelu"
    else:
        start = "transformer.text_model."
        found = {k.removeprefix(start): v for k, v in tensors.items() if "position_ids" not in k}
        tokenizer.pad_token = tokenizer.eos_token
        activation = "quick_gelu"
    vocabulary, width = found["embeddings.token_embedding.weight"].shape
    if len(tokenizer) != vocabulary:
        raise ValueError(
            f"its vocabulary has {vocabulary} tokens, and the tokenizer {len(tokenizer)}"
        )
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(found["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=_count(found, "encoder.layers."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(found["embeddings.position_embedding.weight"]),
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    # transformers 4 holds the tower in one more module.
    inner = getattr(encoder, "text_model", encoder)
    assert isinstance(inner, nn.Module)
    inner.load_state_dict(found)
    return encoder


def _widths(tensors: dict[str, Tensor], blocks: str) -> list[int]:
    return [
        len(tensors[f"{blocks}.{i}.resnets.0.conv1.bias"]) for i in range(_count(tensors, blocks))
    ]


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    start = prefix.rstrip(".") + "."
    return len({k[len(start) :].split(".")[0] for k in tensors if k.startswith(start)})


def _tokenizer(folder: Path | None) -> CLIPTokenizer:
    source = TOKENIZER_ID if folder is None else folder
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            source, local_files_only=True, model_max_length=MAX_TOKENS
        )
        # Of an empty folder transformers makes a tokenizer without words.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("it has no words")
    except Exception as error:
        raise ValueError(
            f"no vocabulary in {source}: give --tokenizer, the tokenizer folder of any Stable "
            "Diffusion 1 or 2"
        ) from error
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="the published .pt")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--tokenizer", type=Path, help="a folder with CLIP's vocabulary")
    given = parser.parse_args(arguments)
    try:
        convert(given.checkpoint, given.folder, given.tokenizer)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
