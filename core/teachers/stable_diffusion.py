"""Stable Diffusion 1.x and 2.x (arXiv 2112.10752): a UNet on latents, predicting eps or v."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.teachers.folder import TeacherFolder
from core.teachers.loading import discrete_schedule
from core.teachers.pretrained import LatentPretrainedTeacher, TextFeatures, TextReader
from core.teachers.teacher import TeacherOptions
from core.teachers.text_readers import clip_reader
from core.teachers.unet import UNET_LORA, load_unet

__all__ = ["LATENTS_TO_RGB", "StableDiffusionTeacher"]

LATENTS_TO_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
"""What each latent channel of Stable Diffusion 1 and 2 adds to R, G and B in [-1, 1], about: the
matrix with which Latent-NeRF (arXiv 2211.07600, Section 3.2) begins its refinement in RGB, from
its authors' program."""


class StableDiffusionTeacher(LatentPretrainedTeacher):
    """Latents of 4 channels at an eighth of the image's side; 512 or 768 pixels.

    t in [0, 1] is the network's timestep divided by the last one, between timesteps too.
    """

    published_dtype = torch.float16
    latents_to_rgb = LATENTS_TO_RGB
    lora_places = UNET_LORA
    unet_class: ClassVar[type[UNet2DConditionModel]] = UNet2DConditionModel

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        schedule, self.given = discrete_schedule(folder)
        self.schedule, self.timestep = schedule, schedule.timestep
        self.unet = load_unet(self, self.unet_class)
        self.set_image_size(self.unet.config["sample_size"])

    @property
    def module(self) -> nn.Module:
        return nn.ModuleList([self.unet, self.autoencoder.vae])

    @property
    def text_readers(self) -> Sequence[TextReader]:
        return (clip_reader(),)

    def text_features(self, texts: list[str]) -> TextFeatures:
        """The encoder's last states; its padding is part of what the UNet was trained on."""
        (reader,) = self.text_readers
        return TextFeatures(tokens=self.encode_text(reader, texts)["last_hidden_state"])

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 4, h, w], t [B]; without a conditioning, for the empty prompt."""
        cond, text = self.conditioning_of(cond, len(x_t))
        extra: dict[str, Any] = self.added_conditions(cond)
        out = self.unet(
            x_t.to(self.dtype), self.timestep(t), encoder_hidden_states=text, **extra
        ).sample
        return Prediction(out.to(x_t.dtype), self.given, x_t, t, self.schedule)

    def added_conditions(self, cond: Conditioning) -> dict[str, Any]:
        """What the UNet takes beside the text."""
        return {}
