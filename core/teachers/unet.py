"""diffusers' UNet2DConditionModel, as far as it is a teacher."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from core.teachers.errors import TeacherWeightsError
from core.teachers.folder import TeacherFolder
from core.teachers.loading import load_model

__all__ = ["load_unet"]


def load_unet(folder: TeacherFolder, dtype: torch.dtype) -> UNet2DConditionModel:
    """The folder's UNet.

    Raises TeacherWeightsError for a guidance-distilled one (LCM's): it denoises in few steps and
    has no unconditional prediction, so that it is a student and no teacher.
    """
    unet = load_model(folder, "unet", UNet2DConditionModel, dtype)
    if unet.config["time_cond_proj_dim"] is not None:
        raise TeacherWeightsError(
            f"the unet in {folder.path} is a consistency student with its guidance built in: give "
            "the folder of the model that it was distilled from"
        )
    return unet
