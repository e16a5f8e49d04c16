"""What methods share whose student is a mean velocity, sampled by jumps."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.method import Distillation, Ground, Settings
from core.distillation.students import VelocityFlowMap, sample_by_jumps

__all__ = ["VelocityStudent"]


class VelocityStudent(Distillation):
    """`student` is u(x_t, t, s), `flow_map` the VelocityFlowMap that it makes."""

    def __init__(self, ground: Ground, **settings: Unpack[Settings]) -> None:
        super().__init__(ground, **settings)
        self.student = ground.make_network(times=2)
        self.flow_map = VelocityFlowMap(self.student, ground.schedule)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_jumps(self.flow_map, x, self.ground.grid(nfe), cond)
