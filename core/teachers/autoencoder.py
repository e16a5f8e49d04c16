"""The autoencoder of latent teachers: diffusers' AutoencoderKL with its shift and scale."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from core.teachers.errors import TeacherOptionError, TeacherWeightsError
from core.teachers.folder import TeacherFolder
from core.teachers.loading import load_model

__all__ = ["Autoencoder"]


class Autoencoder:
    """Images [B, 3, H, W] in [-1, 1] to latents [B, C, H/factor, W/factor], and back.

    A network of latents was trained on (z - shift) * scale, or on (z - mean) * scale / std where
    the autoencoder's config has a mean and a standard deviation per channel.

    It computes in float32 where `dtype` is float16 and the folder says that it overflows there, by
    force_upcast in the autoencoder's config. A folder that has not that key, as those of Stable
    Diffusion 1 and 2, is taken at the family's word, `overflows`; diffusers would fill in a true.
    """

    def __init__(
        self,
        folder: TeacherFolder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: bool,
        overflows: bool = False,
    ) -> None:
        vae = load_model(folder, "vae", AutoencoderKL, dtype, device)
        config = vae.config
        if dtype is torch.float16 and _written(folder).get("force_upcast", overflows):
            # Read again and not cast: what is lost in half precision stays lost.
            vae = load_model(folder, "vae", AutoencoderKL, torch.float32, device)
        if checkpoint:
            vae.enable_gradient_checkpointing()
        self.vae = vae
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.channels: int = config["latent_channels"]
        self.scale: float = config["scaling_factor"]
        self.shift, self.std = self._statistics(folder, device)

    def _statistics(self, folder: TeacherFolder, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is subtracted and divided by, each [1, C or 1, 1, 1] in float64."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if (mean is None) != (std is None):
            raise TeacherWeightsError(
                f"the vae in {folder.path} has one of latents_mean and latents_std without the "
                "other: download or copy the folder again"
            )
        if mean is None:
            mean, std = [config.get("shift_factor") or 0.0], [1.0]

        def per_channel(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).view(1, -1, 1, 1)

        return per_channel(mean), per_channel(std or [1.0])

    def side(self, image_size: int, multiple_of: int = 1) -> int:
        """Side of the latents of an image; TeacherOptionError where that is no such multiple."""
        step = self.factor * multiple_of
        if image_size < step or image_size % step:
            raise TeacherOptionError(
                f"image_size is {image_size}: give a positive multiple of {step} for this teacher"
            )
        return image_size // self.factor

    def encode(self, x: Tensor) -> Tensor:
        """The posterior's mean as the denoiser takes it, in x's dtype; differentiable in x."""
        z = self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode().to(x.dtype)
        return (z - self.shift.to(x.dtype)) * (self.scale / self.std).to(x.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of the denoiser's latents, in their dtype."""
        z = latents * (self.std / self.scale).to(latents.dtype) + self.shift.to(latents.dtype)
        return self.vae.decode(z.to(self.vae.dtype)).sample.to(latents.dtype)


def _written(folder: TeacherFolder) -> dict[str, Any]:
    """The autoencoder's config as it stands in its file, which diffusers has just read."""
    return json.loads((folder.path / "vae" / "config.json").read_text(encoding="utf-8"))
