"""A teacher that can learn: low-rank adapters on its attention, its own weights shared and frozen.

Variational score distillation asks a second denoiser what the images that are being made look
like. It is the teacher itself with a LoRA (arXiv 2106.09685), told where the camera stands
(ProlificDreamer, arXiv 2305.16213, Section 3.2), and at the start it is the teacher to the bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule
from core.teachers.toybox_network import CAMERA_FEATURES, camera_features

if TYPE_CHECKING:
    from core.teachers.teacher import Teacher

__all__ = ["CameraEmbedding", "LoraDenoiser", "LoraPlaces", "adapt"]


@dataclass(frozen=True, kw_only=True)
class LoraPlaces:
    """Where a family's network takes the adapters.

    Attributes:
        network: The teacher's attribute that holds the network.
        attention: Regular expression of the attention layers' whole names in the network.
        time_embedding: Name of the part of the network whose output [B, D] the camera's embedding
            is added to; None where the network takes the camera of a Conditioning by itself.
    """

    network: str
    attention: str
    time_embedding: str | None


class CameraEmbedding(nn.Module):
    """[B, D] for cameras [B, 2], azimuth and elevation in degrees; zero before any training."""

    def __init__(self, width: int, generator: torch.Generator, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(hidden, CAMERA_FEATURES))
        self.out = nn.Parameter(torch.zeros(width, hidden))
        _draw(self.hidden, generator)

    def forward(self, camera: Tensor) -> Tensor:
        features = camera_features(camera.to(self.hidden))
        return nn.functional.silu(features @ self.hidden.T) @ self.out.T


class _TimeAndCamera(nn.Module):
    """A network's time embedding with the camera's added to it, where there is a camera."""

    def __init__(self, time_embedding: nn.Module, embedding: CameraEmbedding) -> None:
        super().__init__()
        self.time_embedding = time_embedding
        self.embedding = embedding
        self.camera: Tensor | None = None

    def forward(self, *args: Any, **how: Any) -> Tensor:
        time: Tensor = self.time_embedding(*args, **how)
        if self.camera is None:
            return time
        return time + self.embedding(self.camera).to(time.dtype)


class LoraDenoiser:
    """A Denoiser with parameters to train; made by `adapt`.

    Attributes:
        trainable: The adapters' and the camera embedding's parameters by name, in float32.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        trainable: Mapping[str, nn.Parameter],
        place_of_camera: _TimeAndCamera | None,
    ) -> None:
        self.trainable = dict(trainable)
        self._denoiser = denoiser
        self._place_of_camera = place_of_camera

    @property
    def schedule(self) -> NoiseSchedule:
        return self._denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """As the teacher's own call; differentiable in the trainable parameters and in x_t."""
        if self._place_of_camera is None:
            return self._denoiser(x_t, t, cond)
        cond = None if cond is None else cond.expand(len(x_t))
        self._place_of_camera.camera = None if cond is None else cond.camera
        try:
            return self._denoiser(x_t, t, cond)
        finally:
            self._place_of_camera.camera = None


def adapt(
    teacher: Teacher, places: LoraPlaces, *, rank: int, generator: torch.Generator
) -> LoraDenoiser:
    """A twin of `teacher` with adapters; no weight is copied and the teacher is not touched.

    The twin's modules are new and their parameters and buffers are the teacher's own. B of each
    adapter x + B A x starts at zero, so that the twin's predictions are the teacher's. What is
    trained is float32 also in a network of half precision: steps of 1e-4 would be lost in that.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network: nn.Module = getattr(teacher, places.network)
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    with torch.random.fork_rng(devices=[]):  # peft draws from torch's own generator
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=places.attention), twin
        )
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if ".lora_A." in name:
                _draw(parameter, generator)
    place = None
    if places.time_embedding is not None:
        time_embedding = twin.get_submodule(places.time_embedding)
        linear = [part for part in time_embedding.modules() if isinstance(part, nn.Linear)][-1]
        embedding = CameraEmbedding(linear.out_features, generator).to(linear.weight.device)
        place = _TimeAndCamera(time_embedding, embedding)
        twin.set_submodule(places.time_embedding, place)
    adapted = copy.copy(teacher)
    setattr(adapted, places.network, twin)
    trainable = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    return LoraDenoiser(adapted, trainable, place)


@torch.no_grad()
def _draw(weight: nn.Parameter, generator: torch.Generator) -> None:
    """Uniform within 1/sqrt(inputs), as torch's own linear layers start."""
    bound = 1 / math.sqrt(weight.shape[1])
    weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)
