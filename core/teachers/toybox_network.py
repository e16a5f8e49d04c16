"""The embedded teacher's network: a small transformer over image patches, text and camera.

A 64x64 image is cut into 8x8 patches of 8x8 pixels for the single-stream blocks of Flux, each
modulated by time, camera and the prompt as a whole (adaLN-Zero, arXiv 2212.09748, Section 3.2).
Every patch knows the ray of the world that it looks along, as in CAT3D (arXiv 2405.10314): which
way a thing faces is hard to learn from the modulation alone.
It predicts x0, as in "Back to Basics: Let Denoising Generative Models Denoise" (arXiv 2511.13720).
Patches alone come out ragged where they meet, so three convolutions at a quarter of the resolution
let neighbours agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from core.out_of_memory import raise_shortage
from core.teachers.errors import TeacherWeightsError
from core.teachers.quiet import quiet

IMAGE_SIZE = 64
PATCH = 8
POSITION_CHANNELS = 64
RAY_CHANNELS = 58
FOLD = 4
CHANNELS = 3 * FOLD * FOLD
TEXT_WIDTH = 160
MAX_TOKENS = 24
CAMERA_FEATURES = 11
FORMAT = "sds3d-toybox-teacher/3"

# The camera of the training pictures, whose distance varies by a twentieth.
_DISTANCE = 2.9
_FOVY_DEG = 40.0
_DEPTHS = (-0.6, 0.0, 0.6)


def camera_features(camera: Tensor) -> Tensor:
    """Harmonics of the camera's direction.

    Args:
        camera: [B, 2], azimuth and elevation in degrees; NaN in a row drops that row's camera.

    Returns:
        [B, 11]: sines and cosines of 1, 2, 3 times azimuth, 1, 2 times elevation, and a flag that
        is 1 where a camera is given; all zero where it is dropped.
    """
    angle = torch.deg2rad(camera)
    azimuth, elevation = angle[:, 0], angle[:, 1]
    rows = [f(k * azimuth) for k in (1, 2, 3) for f in (torch.sin, torch.cos)]
    rows += [f(k * elevation) for k in (1, 2) for f in (torch.sin, torch.cos)]
    rows.append(torch.ones_like(azimuth))
    features = torch.stack(rows, dim=1)
    return torch.where(features.isnan().any(1, keepdim=True), 0.0, features)


def ray_features(camera: Tensor, side: int) -> Tensor:
    """Where in the object's world each patch looks.

    Args:
        camera: [B, 2], azimuth and elevation in degrees; NaN in a row drops that row's camera.
        side: Patches along an edge.

    Returns:
        [B, side^2, 58], row-major: sines and cosines, at wavelengths 4, 2 and 1, of three points
        on the ray through the patch's centre (0.6 before the plane through the origin that faces
        the camera, on it, and 0.6 behind), the direction to the camera, and a flag that is 1 where
        a camera is given; all zero where it is dropped.
    """
    angle = torch.deg2rad(camera.nan_to_num())
    sin_a, sin_e = angle.sin().unbind(1)
    cos_a, cos_e = angle.cos().unbind(1)
    backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], dim=1)
    right = torch.stack([cos_a, torch.zeros_like(cos_a), -sin_a], dim=1)
    up = torch.stack([-sin_e * sin_a, cos_e, -sin_e * cos_a], dim=1)
    half = _DISTANCE * math.tan(math.radians(_FOVY_DEG / 2))
    centres = (torch.arange(side, device=camera.device, dtype=camera.dtype) + 0.5) * 2 / side - 1
    v, u = torch.meshgrid(-half * centres, half * centres, indexing="ij")
    plane = u.reshape(-1, 1) * right[:, None] + v.reshape(-1, 1) * up[:, None]
    toward = (plane - _DISTANCE * backward[:, None]) / _DISTANCE
    points = torch.cat([plane + depth * toward for depth in _DEPTHS], dim=2)
    waves = [f(points * (math.pi / 2 * k)) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
    direction = backward[:, None].expand(-1, side * side, -1)
    features = torch.cat([*waves, direction, torch.ones_like(direction[..., :1])], dim=2)
    return torch.where(camera.isnan().any(1)[:, None, None], 0.0, features)


class Refiner(ModelMixin, ConfigMixin):
    """Convolutions that let neighbouring patches agree, at 16x16x48.

    They see the transformer's x0 and the noised image, and add to the former; at first nothing.
    """

    @register_to_config
    def __init__(self, channels: int = CHANNELS, width: int = 96) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x0: Tensor, x_t: Tensor) -> Tensor:
        """Refined x0 from x0 and x_t, all [B, channels, H, W]."""
        hidden = F.silu(self.conv_in(torch.cat([x0, x_t], dim=1)))
        hidden = hidden + F.silu(self.conv_mid(hidden))
        return x0 + self.conv_out(hidden)


def make_transformer() -> FluxTransformer2DModel:
    """Six single-stream blocks of width 256 over 64 patches of 8x8 pixels and one text token.

    Modulations and the last layer start at zero, so that every block starts as the identity.
    """
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=3 * PATCH**2 + POSITION_CHANNELS + RAY_CHANNELS,
        out_channels=3 * PATCH**2,
        num_layers=0,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH + CAMERA_FEATURES,
        axes_dims_rope=(16, 24, 24),
    )
    for name, parameter in transformer.named_parameters():
        if re.search(r"norm\.linear|norm_out\.linear|^proj_out", name):
            nn.init.zeros_(parameter)
    return transformer


def make_text_encoder(vocabulary_size: int) -> CLIPTextModel:
    """Three transformer layers over word tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer; unknown words become one token, which callers look for."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[^\w]"), behavior="isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=MAX_TOKENS,
    )


class ToyboxNetwork(nn.Module):
    """x0-prediction from (x_t, t, text, camera).

    Args:
        transformer: From `make_transformer`.
        refiner: A `Refiner`.
        text_encoder: From `make_text_encoder`.
    """

    position: Tensor
    image_ids: Tensor

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        refiner: Refiner,
        text_encoder: CLIPTextModel,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.refiner = refiner
        self.text_encoder = text_encoder
        side = IMAGE_SIZE // PATCH
        position = get_2d_sincos_pos_embed(POSITION_CHANNELS, side, output_type="pt")
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        self.register_buffer("position", position.float(), persistent=False)
        self.register_buffer("image_ids", ids.float(), persistent=False)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Text features [B, 1, D] of token ids [B, L]: the prompt as a whole, read at its end.

        In full precision under autocast too: it costs next to nothing.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            return self.text_encoder(input_ids=tokens).pooler_output[:, None]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """Predicted x0.

        Args:
            x_t: [B, 3, 64, 64], noised images, data in [-1, 1].
            t: [B], in [0, 1]; 0 is data, 1 is noise.
            text: [B, 1, D], from `encode_tokens`.
            camera: [B, 2], azimuth and elevation in degrees, NaN where dropped.
            guidance_scale: [B], for a transformer with a guidance embedder, which needs it.

        Returns:
            [B, 3, 64, 64] in the dtype of x_t.
        """
        dtype = self.transformer.dtype
        noised = x_t.to(dtype)
        patches = F.pixel_unshuffle(noised, PATCH).flatten(2).transpose(1, 2)
        # Rotary embeddings tell where patches are from one another, these where they are.
        position = self.position.to(dtype).expand(len(patches), -1, -1)
        rays = ray_features(camera.float(), IMAGE_SIZE // PATCH).to(dtype)
        pooled = torch.cat([text[:, 0], camera_features(camera.float())], dim=1)
        out = self.transformer(
            hidden_states=torch.cat([patches, position, rays], dim=2),
            encoder_hidden_states=text.to(dtype),
            pooled_projections=pooled.to(dtype),
            timestep=t,
            # Flux multiplies it by a thousand, and scales of a few are what its harmonics tell.
            guidance=None if guidance_scale is None else guidance_scale / 1000,
            img_ids=self.image_ids,
            txt_ids=self.image_ids.new_zeros(text.shape[1], 3),
        ).sample
        grid = out.transpose(1, 2).unflatten(2, (IMAGE_SIZE // PATCH, IMAGE_SIZE // PATCH))
        x0 = F.pixel_unshuffle(F.pixel_shuffle(grid, PATCH), FOLD)
        x0 = self.refiner(x0, F.pixel_unshuffle(noised, FOLD).to(x0.dtype))
        return F.pixel_shuffle(x0.to(x_t.dtype), FOLD)


def make_network(vocabulary_size: int) -> ToyboxNetwork:
    """A network with random weights from torch's global generator."""
    return ToyboxNetwork(make_transformer(), Refiner(), make_text_encoder(vocabulary_size))


def channels_last(network: ToyboxNetwork) -> ToyboxNetwork:
    """Lay the convolutions' weights out as the CPU's and GPU's fast kernels read them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def save_network(
    network: ToyboxNetwork,
    tokenizer: PreTrainedTokenizerFast,
    words: dict[str, object],
    folder: Path,
) -> None:
    """Write a diffusers-format folder: fp16 safetensors, tokenizer, scheduler, vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = make_network(network.text_encoder.config.vocab_size)
    copy.load_state_dict(network.state_dict())
    nn.Module.half(copy)
    copy.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    copy.refiner.save_pretrained(folder / "refiner", safe_serialization=True)
    copy.text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "vocabulary.json").write_text(json.dumps(words, indent=1, sort_keys=True) + "\n")
    index = {
        "_class_name": "ToyboxTeacher",
        "format": FORMAT,
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "refiner": ["core.teachers.toybox_network", "Refiner"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def load_network(folder: Path) -> tuple[ToyboxNetwork, PreTrainedTokenizerFast]:
    """Read what `save_network` wrote, in float32, without any look at the network.

    Raises TeacherWeightsError that names the part which is missing, incomplete or damaged, or the
    format of a folder that is older or newer than this program.
    """
    found = _format(folder)
    if found != FORMAT:
        raise TeacherWeightsError(
            f"the teacher in {folder} has the format {found!r} and this version reads {FORMAT!r}: "
            "train it again with scripts/train_toybox_teacher.py, or use the version that made it"
        )
    from_disk: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    in_diffusers = {**from_disk, "torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    with quiet():
        transformer = _load(
            folder / "transformer",
            lambda path: FluxTransformer2DModel.from_pretrained(path, **in_diffusers),
        )
        refiner = _load(
            folder / "refiner", lambda path: Refiner.from_pretrained(path, **in_diffusers)
        )
        text_encoder = _load(
            folder / "text_encoder",
            lambda path: CLIPTextModel.from_pretrained(path, dtype=torch.float32, **from_disk),
        )
        tokenizer = _load(
            folder / "tokenizer",
            lambda path: (PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True), {}),
        )
    return ToyboxNetwork(transformer, refiner, text_encoder), tokenizer


def _format(folder: Path) -> str:
    try:
        index = json.loads((folder / "model_index.json").read_text())
        return str(index["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherWeightsError(
            f"the teacher's model_index.json in {folder} is damaged ({type(error).__name__}): "
            "install the package again, or give the folder of a complete teacher"
        ) from error


def _load(folder: Path, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of `folder`, unless any of its weights is missing or left over."""
    try:
        made, info = load(folder)
        # Both libraries only warn of a tensor that is not in the file, and draw it at random.
        for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if info.get(fault):
                raise ValueError(f"{fault.replace('_', ' ')}: {sorted(map(str, info[fault]))[0]}")
    except Exception as error:
        raise_shortage(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherWeightsError(
            f"the teacher's {folder.name} in {folder.parent} is damaged ({reason}): "
            "install the package again, or give the folder of a complete teacher"
        ) from error
    return made
