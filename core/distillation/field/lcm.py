"""Latent consistency models' recipe: consistency distillation of a guided teacher, with skips."""

from __future__ import annotations

from typing import Unpack

from core.distillation.field.consistency import ConsistencyDistillation
from core.distillation.field.guidance import guided_ground
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.solvers.ddim import DDIM
from core.solvers.sampling import Solver

__all__ = ["LatentConsistency"]


class LatentConsistency(ConsistencyDistillation):
    """d(f(x_t, t, w), sg f_average(S_w(x_t), s, w)), s `skip` intervals down (arXiv 2310.04378).

    Consistency distillation of the guided probability-flow ODE: S_w is a DDIM step on the guided
    prediction, the scale an input of the student, cond.guidance_scale. On a fine grid, skipping
    keeps x_t and x_s apart enough to learn from. Where the samples live, in an autoencoder's
    latent space in the paper, is the ground's business.
    """

    card = MethodCard(
        name="lcm",
        title="Latent consistency model",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER, Needs.DATA, Needs.LABELS}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2310.04378",
        idea="Consistency distillation of the guided teacher, with the scale as an input.",
        equation="d(f(x_t, t, w), sg f_average(S_w(x_t), s, w))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        min_scale: float = 1.0,
        max_scale: float = 4.0,
        intervals: int = 50,
        skip: int = 5,
        huber: float = 1e-3,
        average_decay: float = 0.95,
        solver: Solver | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Scales are drawn uniformly from [min_scale, max_scale]; ask the student for no other.

        The rest as in ConsistencyDistillation, with DDIM for a solver.
        """
        super().__init__(
            guided_ground(ground, min_scale, max_scale),
            intervals=intervals,
            skip=skip,
            huber=huber,
            average_decay=average_decay,
            solver=solver or DDIM(),
            **settings,
        )
