"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer on latents, predicting velocity."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.folder import TeacherFolder
from core.teachers.lora import LoraPlaces
from core.teachers.pretrained import LatentPretrainedTeacher, TextFeatures, TextReader
from core.teachers.teacher import TeacherOptions
from core.teachers.text_readers import clip_reader, t5_reader

__all__ = ["StableDiffusion3Teacher"]

T5_TOKENS = 256
TIMESTEPS = 1000
"""The network was told sigma in thousandths."""


class StableDiffusion3Teacher(LatentPretrainedTeacher):
    """Latents of 16 channels at an eighth of the image's side; 1024 pixels.

    t in [0, 1] is sigma of the straight path; the scheduler's shift is the sampler's business.
    A folder without the third text encoder (T5) gets zeros for it, as the pipeline does.
    """

    published_dtype = torch.bfloat16
    lora_places = LoraPlaces(
        network="transformer",
        attention=r".*\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        time_embedding="time_text_embed",
    )

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        self.schedule = FlowSchedule()
        self.transformer = self.load_network("transformer", SD3Transformer2DModel)
        config = self.transformer.config
        self.set_image_size(config["sample_size"], config["patch_size"])

    @property
    def module(self) -> nn.Module:
        return nn.ModuleList([self.transformer, self.autoencoder.vae])

    @property
    def text_readers(self) -> Sequence[TextReader]:
        clip = [clip_reader(suffix, CLIPTextModelWithProjection) for suffix in ("", "_2")]
        if not self.folder.has("text_encoder_3"):
            return clip
        return [*clip, t5_reader("_3", max_tokens=T5_TOKENS)]

    def text_features(self, texts: list[str]) -> TextFeatures:
        """CLIP's last but one states side by side, padded to T5's width and followed by T5's
        (Section 4); the two CLIP projections side by side."""
        first, second, *t5 = self.text_readers
        states, pooled = [], []
        for reader in (first, second):
            found = self.encode_text(reader, texts, hidden_states=True)
            states.append(found["hidden_states"][-2])
            pooled.append(found["text_embeds"])
        clip = torch.cat(states, dim=-1)
        width = self.transformer.config["joint_attention_dim"]
        if t5:
            long = self.encode_text(t5[0], texts)["last_hidden_state"]
        else:
            long = clip.new_zeros(len(texts), T5_TOKENS, width)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        return TextFeatures(tokens=torch.cat([clip, long], dim=1), pooled=torch.cat(pooled, dim=-1))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 16, h, w], t [B]; without a conditioning, for the empty prompt."""
        cond, text = self.conditioning_of(cond, len(x_t))
        assert cond.pooled_text is not None
        velocity = self.transformer(
            hidden_states=x_t.to(self.dtype),
            timestep=t * TIMESTEPS,
            encoder_hidden_states=text,
            pooled_projections=cond.pooled_text.to(self.dtype),
        ).sample
        return Prediction.from_velocity(velocity.to(x_t.dtype), x_t, t, self.schedule)
