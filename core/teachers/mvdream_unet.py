"""MVDream's network (arXiv 2308.16512): a UNet that denoises the views of one object together."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

__all__ = ["CAMERA_DIM", "VIEWS", "JointSelfAttention", "MultiViewUNet", "camera_matrix"]

VIEWS = 4
"""Views of one object that the published networks were trained on."""

CAMERA_DIM = 16
"""Numbers of a camera: its 4x4 matrix, row by row."""


def camera_matrix(camera: Tensor) -> Tensor:
    """The network's cameras [B, 16] of azimuth and elevation in degrees [B, 2].

    A camera is its camera-to-world matrix with the translation made a unit vector, so that the
    distance is not told. The camera's axes are OpenGL's, right, up and backward. The world's are
    Blender's, +Z up, and azimuth 0 lies on +X with +Y at 90 degrees, as in the authors' text-to-3D
    program. From a world with +Y up and the front on +Z it is the rotation (x, y, z) -> (z, x, y).
    """
    azimuth, elevation = torch.deg2rad(camera).unbind(1)
    sin_az, cos_az = azimuth.sin(), azimuth.cos()
    sin_el, cos_el = elevation.sin(), elevation.cos()
    zero = torch.zeros_like(azimuth)
    backward = torch.stack([cos_el * cos_az, cos_el * sin_az, sin_el], dim=1)
    right = torch.stack([-sin_az, cos_az, zero], dim=1)
    up = torch.linalg.cross(backward, right)
    matrix = torch.zeros(len(camera), 4, 4, dtype=camera.dtype, device=camera.device)
    matrix[:, :3] = torch.stack([right, up, backward, backward], dim=2)
    matrix[:, 3, 3] = 1
    return matrix.flatten(1)


class JointSelfAttention:
    """Self-attention in which every token sees those of all `views` of its object.

    The tokens of `views` consecutive samples become one sequence (Section 3.1 of the paper, "3D
    self-attention"); `processor` is how one sequence is attended to.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.views = VIEWS

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        samples, length, width = hidden_states.shape
        if samples % self.views:
            raise ValueError(
                f"A batch of {samples} is no multiple of {self.views} views: give each object all "
                "of its views."
            )
        joint = hidden_states.reshape(-1, self.views * length, width)
        out = self.processor(attn, joint, encoder_hidden_states, attention_mask)
        return out.reshape(samples, length, width)


class MultiViewUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet with joint self-attention and an embedding of the camera.

    With cameras [B, 16] as `class_labels`, VIEWS consecutive samples are views of one object, and
    a two-layer MLP of the camera is added to the time's embedding (diffusers has it as the
    projection of class labels). Without them each sample is an image of its own, as in the part of
    the training that kept the network's knowledge of pictures.
    """

    def join_views(self) -> None:
        """Let self-attention, as it is set now, reach over the views."""
        for name, module in self.named_modules():
            if name.endswith(".attn1") and isinstance(module, Attention):
                module.set_processor(JointSelfAttention(module.get_processor()))

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        if class_labels is None:
            return None
        return super().get_class_embed(sample, class_labels)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        views = 1 if kwargs.get("class_labels") is None else VIEWS
        for processor in self.attn_processors.values():
            if isinstance(processor, JointSelfAttention):
                processor.views = views
        return super().forward(*args, **kwargs)
