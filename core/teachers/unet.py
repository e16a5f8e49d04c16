"""diffusers' UNet2DConditionModel, as far as it is a teacher."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from core.teachers.errors import TeacherWeightsError
from core.teachers.folder import TeacherFolder
from core.teachers.loading import load_model
from core.teachers.lora import LoraPlaces

__all__ = ["UNET_LORA", "load_unet"]

UNET_LORA = LoraPlaces(
    network="unet",
    attention=r".*\.(to_[qkv]|to_out\.0|add_[kv]_proj)",
    time_embedding="time_embedding",
)
"""All self- and cross-attention of a UNet that knows no camera."""


def load_unet(
    folder: TeacherFolder,
    dtype: torch.dtype,
    kind: type[UNet2DConditionModel] = UNet2DConditionModel,
) -> UNet2DConditionModel:
    """The folder's UNet, of class `kind`.

    Raises TeacherWeightsError for a guidance-distilled one (LCM's): it denoises in few steps and
    has no unconditional prediction, so that it is a student and no teacher.
    """
    unet = load_model(folder, "unet", kind, dtype)
    if unet.config["time_cond_proj_dim"] is not None:
        raise TeacherWeightsError(
            f"the unet in {folder.path} is a consistency student with its guidance built in: give "
            "the folder of the model that it was distilled from"
        )
    return unet
