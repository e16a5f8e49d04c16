"""diffusers' UNet2DConditionModel, as far as it is a teacher."""

from __future__ import annotations

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from core.teachers.errors import TeacherWeightsError
from core.teachers.lora import LoraPlaces
from core.teachers.pretrained import PretrainedTeacher

__all__ = ["UNET_LORA", "load_unet"]

UNET_LORA = LoraPlaces(
    network="unet",
    attention=r".*\.(to_[qkv]|to_out\.0|add_[kv]_proj)",
    time_embedding="time_embedding",
)
"""All self- and cross-attention of a UNet that knows no camera."""


def load_unet(
    teacher: PretrainedTeacher, kind: type[UNet2DConditionModel] = UNet2DConditionModel
) -> UNet2DConditionModel:
    """The UNet of the teacher's folder, of class `kind`.

    Raises TeacherWeightsError for a guidance-distilled one (LCM's): it denoises in few steps and
    has no unconditional prediction, so that it is a student and no teacher.
    """
    unet = teacher.load_network("unet", kind)
    if unet.config["time_cond_proj_dim"] is not None:
        raise TeacherWeightsError(
            f"the unet in {teacher.folder.path} is a consistency student with its guidance built "
            "in: give the folder of the model that it was distilled from"
        )
    return unet
