"""The second denoiser of variational score distillation: it learns what the renders look like."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.schedule import diffuse, noise_like
from core.teachers.teacher import TrainableDenoiser
from core.transfer import to_device

from .optimizer_state import all_finite, load_moments, moments_of

__all__ = ["FakeScore"]

TIMES = (0.02, 0.98)
"""Between them the diffusion times of the training are uniform, wherever the teacher is asked."""


class FakeScore:
    """A denoiser of what is being made, trained beside it (ProlificDreamer, arXiv 2305.16213).

    One step of Adam for each step of the field, on the loss |prediction - target|² in the
    denoiser's own parametrisation (for an eps network the paper's Eq. 9). It is summed over an
    image, not averaged: Adam does not see the difference, and gradients that pass through layers
    of half precision are not lost.
    """

    def __init__(self, denoiser: TrainableDenoiser, learning_rate: float) -> None:
        self.denoiser = denoiser
        self._learning_rate = learning_rate
        self._parameters = list(denoiser.trainable.values())
        self._optimizer = torch.optim.Adam(self._parameters, betas=(0.9, 0.99))

    def learn(self, x: Tensor, cond: Conditioning, generator: torch.Generator) -> bool:
        """Gradients of the loss on x [B, ...]; whether they and the loss are finite."""
        low, high = TIMES
        # One time for all views of a step: teachers of several views need it so.
        t = low + (high - low) * torch.rand(1, generator=generator)
        t = to_device(t.to(x.dtype), x.device).expand(len(x))
        eps = noise_like(x, generator)
        schedule = self.denoiser.schedule
        prediction = self.denoiser(diffuse(schedule, x, eps, t), t, cond)
        target = prediction.given.target(x, eps, t, schedule)
        loss = (prediction.value - target).square().flatten(1).sum(dim=1).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return bool(all_finite(loss, self._parameters))

    def step(self, rate_scale: float) -> None:
        """Adam's step with this share of the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * rate_scale
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """What determines the following steps, by name."""
        found: dict[str, Tensor] = {f"weights.{k}": v for k, v in self.denoiser.trainable.items()}
        return found | {f"adam.{k}": v for k, v in moments_of(self._optimizer).items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave."""
        for name, parameter in self.denoiser.trainable.items():
            parameter.copy_(tensors[f"weights.{name}"])
        start = "adam."
        load_moments(
            self._optimizer,
            {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)},
        )
