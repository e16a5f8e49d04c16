"""Names of tensors in the layout of Latent Diffusion's code, as diffusers and transformers have
them.

Everything here takes named tensors of one part of a checkpoint, without the part's own prefix, and
returns them renamed. A name that has no place raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["autoencoder_tensors", "open_clip_tensors", "unet_tensors"]

Tensors = Mapping[str, Tensor]
Rules = Sequence[tuple[str, str]]

_RESNET: Rules = (
    (r"in_layers\.0\.", "norm1."),
    (r"in_layers\.2\.", "conv1."),
    (r"emb_layers\.1\.", "time_emb_proj."),
    (r"out_layers\.0\.", "norm2."),
    (r"out_layers\.3\.", "conv2."),
    (r"skip_connection\.", "conv_shortcut."),
)

_UNET_ENDS: Rules = (
    (r"time_embed\.0\.", "time_embedding.linear_1."),
    (r"time_embed\.2\.", "time_embedding.linear_2."),
    (r"camera_embed\.0\.", "class_embedding.linear_1."),
    (r"camera_embed\.2\.", "class_embedding.linear_2."),
    (r"input_blocks\.0\.0\.", "conv_in."),
    (r"out\.0\.", "conv_norm_out."),
    (r"out\.2\.", "conv_out."),
    (r"middle_block\.1\.", "mid_block.attentions.0."),
)


def unet_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Of `model.diffusion_model.`: a UNet with spatial transformers and MVDream's camera."""
    downsamplers = [i for i in range(1, 100) if f"input_blocks.{i}.0.op.weight" in tensors]
    if not downsamplers:
        raise ValueError("its UNet has one resolution only, or none")
    # A level is its residual blocks and then a downsampler; on the way up it has one block more.
    per_level = downsamplers[0]
    return {_unet_name(name, per_level): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, per_level: int) -> str:
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if found and name != f"input_blocks.0.0.{found[4]}":
        way, number, part, rest = found[1], int(found[2]), int(found[3]), found[4]
        level, layer = divmod(number - (way == "input"), per_level)
        block = f"{'down' if way == 'input' else 'up'}_blocks.{level}."
        if rest.startswith("op."):
            return f"{block}downsamplers.0.conv.{rest[3:]}"
        if rest.startswith("conv."):
            return f"{block}upsamplers.0.{rest}"
        if part == 0:
            return f"{block}resnets.{layer}.{_renamed(rest, _RESNET)}"
        return f"{block}attentions.{layer}.{rest}"
    if found := re.fullmatch(r"middle_block\.([02])\.(.+)", name):
        return f"mid_block.resnets.{int(found[1]) // 2}.{_renamed(found[2], _RESNET)}"
    return _renamed(name, _UNET_ENDS)


def autoencoder_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Of `first_stage_model.`: the autoencoder, its attention's 1x1 convolutions made linear."""
    levels = len({found[1] for name in tensors if (found := re.match(r"decoder\.up\.(\d+)", name))})
    renamed = {_autoencoder_name(name, levels): tensor for name, tensor in tensors.items()}
    return {
        name: tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in renamed.items()
    }


_AUTOENCODER: Rules = (
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"((?:encoder|decoder)\.conv_(?:in|out)\.)", r"\1"),
    (r"((?:post_)?quant_conv\.)", r"\1"),
)


def _autoencoder_name(name: str, levels: int) -> str:
    if found := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)", name):
        way, level, rest = found[1], int(found[2]), found[3]
        if way == "decoder.up":  # counted from the pixels there, from the latents in diffusers
            level = levels - 1 - level
        rest = rest.replace("nin_shortcut", "conv_shortcut")
        return f"{way}_blocks.{level}." + _renamed(
            rest,
            (
                (r"block\.(\d+)\.", r"resnets.\1."),
                (r"(down|up)sample\.conv\.", r"\1samplers.0.conv."),
            ),
        )
    return _renamed(name, _AUTOENCODER)


_OPEN_CLIP: Rules = (
    (r"ln_([12])\.", r"layer_norm\1."),
    (r"attn\.out_proj\.", "self_attn.out_proj."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)


def open_clip_tensors(tensors: Tensors, layers: int) -> dict[str, Tensor]:
    """Of OpenCLIP's text tower: the first `layers` of its blocks and the norm after the last."""
    found: dict[str, Tensor] = {
        "embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["positional_embedding"],
        "final_layer_norm.weight": tensors["ln_final.weight"],
        "final_layer_norm.bias": tensors["ln_final.bias"],
    }
    for name, tensor in tensors.items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is None or int(block[1]) >= layers:
            continue
        layer, rest = f"encoder.layers.{block[1]}.", block[2]
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}self_attn.{which}_proj.{kind}"] = part
        else:
            found[layer + _renamed(rest, _OPEN_CLIP)] = tensor
    return found


def _renamed(name: str, rules: Rules) -> str:
    """`name` with the beginning that the first fitting rule replaces."""
    for pattern, replacement in rules:
        new, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return new
    raise ValueError(f"it has a tensor {name!r}, which is not known here")
