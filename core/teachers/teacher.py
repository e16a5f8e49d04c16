"""What every teacher offers, in pixels or in latents, and how one is asked for.

A teacher that denoises pixels takes images [B, 3, H, W] in [-1, 1]. A latent teacher denoises what
its autoencoder makes of them: score distillation then moves the latents, and the gradient flows
through `encode_image` to whatever made the image. `encode_for` and `decode_from` let a caller
treat both alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser

__all__ = [
    "DTYPES",
    "DTypeName",
    "LatentTeacher",
    "PromptNote",
    "TakesLora",
    "Teacher",
    "TeacherOptions",
    "TrainableDenoiser",
    "decode_from",
    "encode_for",
    "free_text_encoders",
    "noise_shape",
    "set_aside",
    "takes_camera",
    "takes_guidance",
    "views_per_object",
]

DTypeName = Literal["auto", "float64", "float32", "bfloat16", "float16"]
DTYPES: dict[DTypeName, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher's weights are held; nothing here changes what it is asked.

    Attributes:
        dtype: Of the weights. "auto" is float32 on the CPU, and on CUDA the half precision that
            the family was published for.
        image_size: Side in pixels at which images are judged; None is the size of its training.
        attention_slicing: Attention in slices: less memory, slower. UNets only.
        checkpoint_vae: The autoencoder's activations are computed again in the backward pass
            instead of kept. Latent teachers only.
        offload_text_encoders: Each text encoder visits the device only while it encodes, and
            meanwhile the denoiser and the autoencoder lie in the machine's memory.
    """

    dtype: DTypeName = "auto"
    image_size: int | None = None
    attention_slicing: bool = False
    checkpoint_vae: bool = False
    offload_text_encoders: bool = False


@dataclass(frozen=True, kw_only=True)
class PromptNote:
    """What the user should know of how a prompt is read; None where there is nothing."""

    warning: str | None


class Teacher(Denoiser, Protocol):
    """A frozen denoiser with its own reader of prompts."""

    @property
    def image_size(self) -> int: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def module(self) -> nn.Module:
        """The frozen parameters, for a proof that they stay as they are."""
        ...

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning: ...


@runtime_checkable
class LatentTeacher(Teacher, Protocol):
    """A teacher whose x_t are latents [B, C, h, w] of its autoencoder."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of an image of `image_size`."""
        ...

    def encode_image(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] of x [B, 3, H, W] in [-1, 1], differentiable, as the denoiser takes
        them: the mean of the posterior, with the family's shift and scale."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1], of latents [B, C, h, w]."""
        ...


class TrainableDenoiser(Denoiser, Protocol):
    """A denoiser and the parameters of it that learn, by name."""

    trainable: dict[str, nn.Parameter]


@runtime_checkable
class TakesLora(Protocol):
    """A teacher of which a learning twin can be made."""

    def adapt(self, rank: int, generator: torch.Generator) -> TrainableDenoiser:
        """The teacher with a LoRA of this rank, drawn from `generator`; it stays as it is."""
        ...


@runtime_checkable
class _FreesText(Protocol):
    def free_text_encoders(self) -> None: ...


@runtime_checkable
class _Held(Protocol):
    @property
    def device(self) -> torch.device: ...

    @property
    def module(self) -> nn.Module: ...


@runtime_checkable
class _SaysCamera(Protocol):
    @property
    def takes_camera(self) -> bool: ...


@runtime_checkable
class _SaysGuidance(Protocol):
    @property
    def takes_guidance(self) -> bool: ...


@runtime_checkable
class _JoinsViews(Protocol):
    @property
    def views_per_object(self) -> int: ...


def encode_for(teacher: Denoiser, x: Tensor) -> Tensor:
    """Images x [B, 3, H, W] in [-1, 1] as `teacher` denoises them: latents, or x itself."""
    return teacher.encode_image(x) if isinstance(teacher, LatentTeacher) else x


def decode_from(teacher: Denoiser, z: Tensor) -> Tensor:
    """What `teacher` denoises as images [B, 3, H, W], about [-1, 1]."""
    return teacher.decode_latents(z) if isinstance(teacher, LatentTeacher) else z


def noise_shape(teacher: Teacher) -> tuple[int, int, int]:
    """Shape of one sample of what `teacher` denoises."""
    if isinstance(teacher, LatentTeacher):
        return teacher.latent_shape
    return 3, teacher.image_size, teacher.image_size


def free_text_encoders(teacher: Denoiser) -> None:
    """Give back the memory of the text encoders of a teacher that can read them again."""
    if isinstance(teacher, _FreesText):
        teacher.free_text_encoders()


@contextlib.contextmanager
def set_aside(teacher: object) -> Iterator[None]:
    """Within the block the teacher's weights lie in the machine's memory, not on its device.

    It must not be asked meanwhile. Nothing happens to one on the CPU, or without a `module`.
    """
    if not isinstance(teacher, _Held) or torch.device(teacher.device).type == "cpu":
        yield
        return
    module, device = teacher.module, teacher.device
    module.to("cpu")
    try:
        yield
    finally:
        module.to(device)


def takes_camera(teacher: Denoiser) -> bool:
    """Whether `teacher` looks at the camera of a Conditioning; those that do not say so do."""
    return not isinstance(teacher, _SaysCamera) or teacher.takes_camera


def takes_guidance(teacher: object) -> bool:
    """Whether `teacher` reads cond.guidance_scale and leaves room for guidance around it."""
    return isinstance(teacher, _SaysGuidance) and teacher.takes_guidance


def views_per_object(teacher: object) -> int:
    """How many consecutive samples `teacher` judges together as views of one object.

    Such views have cameras at one elevation, evenly around, and share one t; each has a noise of
    its own. 1 for teachers that judge each image by itself.
    """
    return teacher.views_per_object if isinstance(teacher, _JoinsViews) else 1
