"""HiFA: distances to the denoised image in the space of the latents and of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.ddim import ddim_step

__all__ = ["HiFA", "ddim_denoise"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HiFA:
    """The gradient by x of w(t)/2 (|z - z^|^2 + image_weight |x - x^|^2) (arXiv 2305.18766).

    z = encode(x), z^ the clean latent that `steps` DDIM steps make of z_t (one step: D(z_t)), and
    x^ = decode(z^). z^ and x^ are constants of the loss; the first term's gradient goes back
    through the encoder, the second one's does not.

    A teacher of pixels has neither (both None): the two terms are one, with the weight
    1 + image_weight.
    """

    guided_only: ClassVar[bool] = True

    denoiser: Denoiser
    image_weight: float = 0.1
    steps: int = 1
    encode: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if self.image_weight < 0:
            raise ValueError(f"HiFA's image_weight must be at least 0, got {self.image_weight}.")
        if (self.encode is None) != (self.decode is None):
            raise ValueError("HiFA needs encode and decode, or (in pixel space) neither.")

    @torch.no_grad()
    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        x = x.detach()
        weight = per_sample(self.weighting(self.denoiser.schedule, t), x)
        if self.encode is None or self.decode is None:
            z_hat = self._denoise(x, t, cond, generator)
            return (1 + self.image_weight) * weight * (x - z_hat)
        with torch.enable_grad():
            pixels = x.requires_grad_()
            z = self.encode(pixels)
        z_hat = self._denoise(z.detach(), t, cond, generator)
        with torch.enable_grad():
            loss = (z * (z.detach() - z_hat)).sum()
        (of_latent,) = torch.autograd.grad(loss, [pixels])
        x = x.detach()
        return weight * (of_latent + self.image_weight * (x - self.decode(z_hat)))

    def _denoise(
        self, z: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        z_t = diffuse(self.denoiser.schedule, z, noise_like(z, generator), t)
        return ddim_denoise(self.denoiser, z_t, t, cond, steps=self.steps)


@torch.no_grad()
def ddim_denoise(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    cond: Conditioning | None = None,
    *,
    steps: int,
) -> Tensor:
    """The clean image [B, ...] that `steps` DDIM steps of equal length in t make of x_t [B, ...].

    The last step ends at 0 and is the denoiser's x0; one step is D(x_t).
    """
    if steps < 1:
        raise ValueError(f"Denoising needs at least one step, got {steps}.")
    for step in range(steps, 1, -1):
        at = t * (step / steps)
        x_t = ddim_step(denoiser(x_t, at, cond), t * ((step - 1) / steps))
    return denoiser(x_t, t / steps, cond).x0
