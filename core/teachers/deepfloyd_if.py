"""DeepFloyd IF, stage I (DeepFloyd Lab, 2023; after Imagen, arXiv 2205.11487): a UNet on pixels."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.teachers.errors import TeacherOptionError, TeacherWeightsError
from core.teachers.folder import TeacherFolder
from core.teachers.loading import discrete_schedule
from core.teachers.pretrained import PretrainedTeacher, TextFeatures, TextReader
from core.teachers.teacher import TeacherOptions
from core.teachers.text_readers import t5_reader
from core.teachers.unet import UNET_LORA, load_unet

__all__ = ["DeepFloydIFTeacher"]

CHANNELS = 3


class DeepFloydIFTeacher(PretrainedTeacher):
    """Images [B, 3, 64, 64] in [-1, 1], predicting eps; the learned variance is left aside.

    t in [0, 1] is the network's timestep divided by the last one, between timesteps too.
    """

    published_dtype = torch.float16
    lora_places = UNET_LORA

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        if options.checkpoint_vae:
            raise TeacherOptionError(
                "checkpoint_vae is for teachers with an autoencoder, and this one works on pixels: "
                "leave it out"
            )
        schedule, self.given = discrete_schedule(folder)
        self.schedule, self.timestep = schedule, schedule.timestep
        self.unet = load_unet(self)
        if self.unet.config["in_channels"] != CHANNELS:
            raise TeacherWeightsError(
                f"the unet in {folder.path} enlarges images: give the folder of stage I, IF-I-XL, "
                "IF-I-L or IF-I-M"
            )
        trained_at: int = self.unet.config["sample_size"]
        self.image_size = trained_at if options.image_size is None else options.image_size
        step = 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        if self.image_size < step or self.image_size % step:
            raise TeacherOptionError(
                f"image_size is {self.image_size}: give a positive multiple of {step} for this "
                "teacher"
            )

    @property
    def module(self) -> nn.Module:
        return self.unet

    @property
    def text_readers(self) -> Sequence[TextReader]:
        return (t5_reader(max_tokens=77),)

    def text_features(self, texts: list[str]) -> TextFeatures:
        """T5's states of the texts in lower case, with their padding masked in T5 alone."""
        (reader,) = self.text_readers
        found = self.encode_text(reader, [text.lower().strip() for text in texts], masked=True)
        return TextFeatures(tokens=found["last_hidden_state"])

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 3, H, W], t [B]; without a conditioning, for the empty prompt."""
        cond, text = self.conditioning_of(cond, len(x_t))
        out = self.unet(x_t.to(self.dtype), self.timestep(t), encoder_hidden_states=text).sample
        eps = out[:, :CHANNELS].to(x_t.dtype)
        return Prediction(eps, self.given, x_t, t, self.schedule)
