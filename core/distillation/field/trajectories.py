"""Pools of teachers' trajectories: made once, drawn from often, kept in the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.method import Ground
from core.solvers.sampling import Solver, sample

__all__ = ["TrajectoryBatch", "TrajectoryPool"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryBatch:
    """Where B trajectories start, x_T [B, ...], and their states at the pool's points [B, M, ...].

    cond    under which they were made
    """

    x_T: Tensor
    states: Tensor
    cond: Conditioning | None

    @property
    def end(self) -> Tensor:
        """The last state [B, ...]."""
        return self.states[:, -1]


class TrajectoryPool(nn.Module):
    """`size` trajectories of a sampler, each with its states at `points` times.

    A module of buffers alone, so that a resumed training finds the pool that it left. Of the
    conditionings it keeps the labels; other fields are refused when it is filled.
    """

    def __init__(self, ground: Ground, *, size: int, points: int = 1) -> None:
        super().__init__()
        if size < 1 or points < 1:
            raise ValueError(f"A pool needs size >= 1 and points >= 1, got {size} and {points}.")
        self.x_T: Tensor
        self.states: Tensor
        self.labels: Tensor
        self.register_buffer("x_T", torch.zeros(size, *ground.shape))
        self.register_buffer("states", torch.zeros(size, points, *ground.shape))
        self.register_buffer("labels", torch.full((size,), -1))
        self._ground = ground
        self._has_labels = ground.data(1, torch.Generator().manual_seed(0)).cond is not None

    @torch.no_grad()
    def fill(
        self,
        denoiser: Denoiser,
        solver: Solver,
        times: Tensor,
        generator: torch.Generator,
        *,
        chunk: int = 4096,
    ) -> None:
        """Sample `denoiser` from the ground's noise through `times` [k M + 1], k steps a point.

        Raises ValueError for times that the points do not divide.
        """
        size, points = self.states.shape[:2]
        stride, left = divmod(len(times) - 1, points)
        if left or stride < 1:
            raise ValueError(f"{len(times) - 1} steps cannot be divided among {points} points.")
        for start in range(0, size, chunk):
            part = slice(start, min(start + chunk, size))
            n = part.stop - part.start
            cond = self._ground.data(n, generator).cond
            x = self._ground.noise(n, generator)
            states = sample(denoiser, solver, times, x, cond, generator).states
            self.x_T[part] = x
            self.states[part] = torch.stack(states[stride::stride], dim=1)
            if cond is not None:
                self.labels[part] = _labels_alone(cond)

    def draw(self, n: int, generator: torch.Generator) -> TrajectoryBatch:
        """n of them, with replacement."""
        index = torch.randint(len(self.x_T), (n,), generator=generator)
        cond = Conditioning(labels=self.labels[index]) if self._has_labels else None
        return TrajectoryBatch(x_T=self.x_T[index], states=self.states[index], cond=cond)


def _labels_alone(cond: Conditioning) -> Tensor:
    if cond.labels is None or cond.text is not None or cond.camera is not None:
        raise ValueError(
            "A pool of trajectories keeps labels alone. Use a ground whose conditioning is a label."
        )
    return cond.labels
