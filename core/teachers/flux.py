"""FLUX.1 (Black Forest Labs, 2024): a transformer on packed latents, predicting velocity."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.folder import TeacherFolder
from core.teachers.lora import LoraPlaces
from core.teachers.pretrained import LatentPretrainedTeacher, TextFeatures, TextReader
from core.teachers.teacher import TeacherOptions
from core.teachers.text_readers import clip_reader, t5_reader

__all__ = ["FluxTeacher", "pack", "unpack"]

PATCH = 2
IMAGE_SIZE = 1024
EMBEDDED_GUIDANCE = 3.5


def pack(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 * w/2, 4 C] of 2x2 patches, channel first, of latents [B, C, h, w]."""
    return nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, height, width] of tokens [B, height/2 * width/2, 4 C]."""
    grid = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return nn.functional.pixel_shuffle(grid, PATCH)


class FluxTeacher(LatentPretrainedTeacher):
    """Latents of 16 channels at an eighth of the image's side; 1024 pixels.

    t in [0, 1] is sigma of the straight path. FLUX.1-dev has guidance built in, a scale that it
    takes as an input: `encode` sets `Conditioning.guidance_scale` to 3.5, the published value, for
    it. Classifier-free guidance around it contrasts two such predictions. FLUX.1-schnell takes no
    scale and ignores it.
    """

    published_dtype = torch.bfloat16
    lora_places = LoraPlaces(
        network="transformer",
        attention=r".*\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        time_embedding="time_text_embed",
    )

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        self.schedule = FlowSchedule()
        self.transformer = self.load_network("transformer", FluxTransformer2DModel)
        self.takes_guidance: bool = self.transformer.config["guidance_embeds"]
        # The folder does not say at which size it was trained.
        self.set_image_size(IMAGE_SIZE // self.autoencoder.factor, PATCH)

    @property
    def module(self) -> nn.Module:
        return nn.ModuleList([self.transformer, self.autoencoder.vae])

    @property
    def text_readers(self) -> Sequence[TextReader]:
        # What dev and schnell were trained with.
        tokens = 512 if self.takes_guidance else 256
        return clip_reader(), t5_reader("_2", max_tokens=tokens)

    def text_features(self, texts: list[str]) -> TextFeatures:
        """T5's states; CLIP's pooled state."""
        clip, t5 = self.text_readers
        pooled = self.encode_text(clip, texts)["pooler_output"]
        tokens = self.encode_text(t5, texts)["last_hidden_state"]
        return TextFeatures(tokens=tokens, pooled=pooled)

    def embedded_guidance(self, n: int) -> Tensor | None:
        if not self.takes_guidance:
            return None
        return torch.full((n,), EMBEDDED_GUIDANCE, device=self.device)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 16, h, w], t [B]; without a conditioning, for the empty prompt."""
        n, _, height, width = x_t.shape
        cond, text = self.conditioning_of(cond, n)
        assert cond.pooled_text is not None
        guidance = None
        if self.takes_guidance:
            given = cond.guidance_scale
            guidance = self.embedded_guidance(n) if given is None else given
        rows, columns = torch.meshgrid(
            torch.arange(height // PATCH, device=x_t.device),
            torch.arange(width // PATCH, device=x_t.device),
            indexing="ij",
        )
        ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        velocity = self.transformer(
            hidden_states=pack(x_t.to(self.dtype)),
            # The network multiplies both by a thousand itself.
            timestep=t,
            guidance=guidance,
            pooled_projections=cond.pooled_text.to(self.dtype),
            encoder_hidden_states=text,
            txt_ids=ids.new_zeros(text.shape[1], 3).to(self.dtype),
            img_ids=ids.to(self.dtype),
        ).sample
        velocity = unpack(velocity, height, width).to(x_t.dtype)
        return Prediction.from_velocity(velocity, x_t, t, self.schedule)
