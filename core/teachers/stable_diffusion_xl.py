"""Stable Diffusion XL (arXiv 2307.01952): a larger UNet that is also told sizes and crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from core.denoiser import Conditioning
from core.teachers.pretrained import TextFeatures, TextReader
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.text_readers import clip_reader

__all__ = ["StableDiffusionXLTeacher"]


class StableDiffusionXLTeacher(StableDiffusionTeacher):
    """Latents of 4 channels at an eighth of the image's side; 1024 pixels.

    The images that it judges are said to be whole: their original and target size is
    `image_size`, and nothing is cropped (Section 2.2). Without a negative prompt guidance contrasts
    with zero features where the folder says so, as the published model does.
    """

    latents_to_rgb = None  # it has an autoencoder of its own
    vae_overflows = True
    _kept_sizes: tuple[tuple[int, torch.device, torch.dtype], Tensor] | None = None

    @property
    def text_readers(self) -> Sequence[TextReader]:
        return clip_reader(), clip_reader("_2", CLIPTextModelWithProjection)

    def text_features(self, texts: list[str]) -> TextFeatures:
        """Both encoders' last but one states side by side; the second one's projection."""
        states, pooled = [], None
        for reader in self.text_readers:
            found = self.encode_text(reader, texts, hidden_states=True)
            states.append(found["hidden_states"][-2])
            pooled = found.get("text_embeds", pooled)
        return TextFeatures(tokens=torch.cat(states, dim=-1), pooled=pooled)

    def negative_features(self, text: str) -> TextFeatures:
        features = super().negative_features(text)
        if text or not self.folder.index.get("force_zeros_for_empty_prompt", True):
            return features
        assert features.pooled is not None
        return TextFeatures(
            tokens=torch.zeros_like(features.tokens), pooled=torch.zeros_like(features.pooled)
        )

    def added_conditions(self, cond: Conditioning) -> dict[str, Any]:
        assert cond.pooled_text is not None
        time_ids = self._sizes().expand(len(cond.pooled_text), -1)
        text = cond.pooled_text.to(self.dtype)
        return {"added_cond_kwargs": {"text_embeds": text, "time_ids": time_ids}}

    def _sizes(self) -> Tensor:
        """[1, 6]: original size, crop and target size, on the device since an earlier call."""
        wanted = (self.image_size, self.device, self.dtype)
        kept = self._kept_sizes
        if kept is None or kept[0] != wanted:
            size, device, dtype = wanted
            # Made there, number by number: a list of the host would have to be waited for.
            row = torch.full((1, 6), size, device=device, dtype=dtype)
            row[:, 2:4] = 0
            kept = self._kept_sizes = wanted, row
        return kept[1]
