"""MVDream (arXiv 2308.16512): a teacher that judges four views of an object together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from core.denoiser import Conditioning
from core.teachers.folder import TeacherFolder
from core.teachers.mvdream_unet import VIEWS, MultiViewUNet, camera_matrix
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.teacher import TeacherOptions
from core.teachers.unet import UNET_LORA

__all__ = ["MVDreamTeacher"]


class MVDreamTeacher(StableDiffusionTeacher):
    """Latents at an eighth of 256 pixels, predicting eps, each object's views in a row.

    The camera of a `Conditioning` is [B, 2], azimuth and elevation in degrees; the distance is not
    told. With one, B is a multiple of `views_per_object`, and consecutive samples are the views of
    one object: cameras at one elevation, 90 degrees apart, as in the training, with one t and a
    noise of its own for each. Without one, each sample is a picture by itself.
    """

    unet_class = MultiViewUNet
    # It is told the camera in its own way.
    lora_places = replace(UNET_LORA, time_embedding=None)
    views_per_object = VIEWS
    takes_camera = True

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        assert isinstance(self.unet, MultiViewUNet)
        self.unet.join_views()

    def added_conditions(self, cond: Conditioning) -> dict[str, Any]:
        if cond.camera is None:
            return {}
        return {"class_labels": camera_matrix(cond.camera).to(self.device, self.dtype)}
