"""The embedded teacher's network: a small text- and camera-conditioned UNet, from stock classes.

Pixels of a 64x64 image are folded 4x4 into channels, so that a UNet at 16x16 and 8x8 sees whole
objects at a laptop's cost; its convolutions let neighbouring patches agree, which a transformer
on disjoint 8x8 patches has to learn. It predicts x0, as in "Back to Basics: Let Denoising
Generative Models Denoise" (arXiv 2511.13720).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from transformers.utils import logging

from core.teachers.errors import TeacherWeightsError

IMAGE_SIZE = 64
FOLD = 4
MAX_TOKENS = 24
CAMERA_FEATURES = 11
FORMAT = "sds3d-toybox-teacher/1"


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


def make_unet(text_width: int = 160) -> UNet2DConditionModel:
    """The UNet at 16x16x48: 112 and 240 channels, attention to itself and to text at 8x8."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // FOLD,
        in_channels=3 * FOLD * FOLD,
        out_channels=3 * FOLD * FOLD,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(112, 240),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=text_width,
        encoder_hid_dim=text_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=CAMERA_FEATURES,
        resnet_time_scale_shift="scale_shift",
    )


def make_text_encoder(vocabulary_size: int, text_width: int = 160) -> CLIPTextModel:
    """Three transformer layers over word tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=text_width,
            intermediate_size=3 * text_width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=text_width,
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
        unet: From `make_unet`.
        text_encoder: From `make_text_encoder`.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Text features [B, L, D] of token ids [B, L]."""
        return self.text_encoder(input_ids=tokens).last_hidden_state

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, camera: Tensor) -> Tensor:
        """Predicted x0.

        Args:
            x_t: [B, 3, 64, 64], noised images, data in [-1, 1].
            t: [B], in [0, 1]; 0 is data, 1 is noise.
            text: [B, L, D], from `encode_tokens`.
            camera: [B, 2], azimuth and elevation in degrees, NaN where dropped.

        Returns:
            [B, 3, 64, 64] in the dtype of x_t.
        """
        folded = F.pixel_unshuffle(x_t, FOLD).contiguous(memory_format=torch.channels_last)
        dtype = self.unet.dtype
        x0 = self.unet(
            folded.to(dtype),
            1000.0 * t,
            encoder_hidden_states=text.to(dtype),
            class_labels=camera_features(camera.float()).to(dtype),
        ).sample
        return F.pixel_shuffle(x0.to(x_t.dtype), FOLD)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws a bar on stderr for every load, and a table for every fault."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


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
    state = {k: v.detach().clone() for k, v in network.state_dict().items()}
    unet = UNet2DConditionModel.from_config(network.unet.config)
    assert isinstance(unet, UNet2DConditionModel)
    text_encoder = CLIPTextModel(network.text_encoder.config)
    copy = ToyboxNetwork(unet, text_encoder)
    copy.load_state_dict(state)
    copy.half()
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "vocabulary.json").write_text(json.dumps(words, indent=1, sort_keys=True) + "\n")
    index = {
        "_class_name": "ToyboxTeacher",
        "format": FORMAT,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def load_network(folder: Path) -> tuple[ToyboxNetwork, PreTrainedTokenizerFast]:
    """Read what `save_network` wrote, in float32, without any look at the network.

    Raises TeacherWeightsError that names the part which is missing, incomplete or damaged.
    """
    with _quiet():
        unet = _load(
            folder / "unet",
            lambda path: UNet2DConditionModel.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            ),
        )
        text_encoder = _load(
            folder / "text_encoder",
            lambda path: CLIPTextModel.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            ),
        )
        tokenizer = _load(
            folder / "tokenizer",
            lambda path: (PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True), {}),
        )
    return ToyboxNetwork(unet, text_encoder), tokenizer


def _load(folder: Path, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of `folder`, unless any of its weights is missing or left over."""
    try:
        made, info = load(folder)
        # Both libraries only warn of a tensor that is not in the file, and draw it at random.
        for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if info.get(fault):
                raise ValueError(f"{fault.replace('_', ' ')}: {sorted(map(str, info[fault]))[0]}")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherWeightsError(
            f"the teacher's {folder.name} in {folder.parent} is damaged ({reason}): "
            "install the package again, or give the folder of a complete teacher"
        ) from error
    return made
