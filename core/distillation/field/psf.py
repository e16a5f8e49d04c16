"""Point straight flow: a flow on point clouds, straightened, then one step by Chamfer distance."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.distillation.field.reflow import Reflow
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.metrics import chamfer_distance

__all__ = ["PointStraightFlow"]


class PointStraightFlow(Reflow):
    """Flow, reflow, Chamfer(x_T - v(x_T, 1), x0) (Wu et al., arXiv 2212.01747).

    Reflow with another beginning and another end: the first flow is learned from data, each cloud
    with a noise of its own, instead of from a teacher's pairs; and the one-step student need not
    put each point where the flow would have put it, only the cloud.

    Args:
        pairs, pair_steps: As in Reflow.
    """

    card = MethodCard(
        name="psf",
        title="Point straight flow",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA, Needs.CLOUDS}),
        nfe=(1,),
        reference="arXiv 2212.01747",
        idea="Straighten a flow of point clouds, then jump, judged as a set.",
        equation="Chamfer(x_T - v(x_T, 1), x0)",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        pairs: int = 2048,
        pair_steps: int = 16,
        **settings: Unpack[Settings],
    ) -> None:
        if len(ground.shape) != 2:
            raise ValueError(
                f"psf needs point clouds [N, D], and this ground's samples are "
                f"{list(ground.shape)}. Make one with point_cloud_ground."
            )
        super().__init__(ground, rounds=2, pairs=pairs, pair_steps=pair_steps, **settings)

    def make_pairs(self, number: int, generator: torch.Generator) -> None:
        if number > 0:
            super().make_pairs(number, generator)

    def loss_of_round(self, number: int, generator: torch.Generator) -> Tensor:
        if number > 1:
            return super().loss_of_round(number, generator)
        data = self.ground.data(self.batch, generator)
        x_T = self.ground.noise(self.batch, generator)
        t = torch.rand(self.batch, generator=generator)
        return self.flow_loss(self.flows[0], x_T, data.x0, t, data.cond)

    def distance(self, x0: Tensor, target: Tensor) -> Tensor:
        return chamfer_distance(x0, target).mean()
