"""Guidance distillation: one pass for the two of classifier-free guidance, at any scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser, can_concatenate, concatenate
from core.distillation.field.progressive import ProgressiveDistillation, truncated_snr
from core.distillation.method import (
    Batch,
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import NetworkDenoiser, sample_by_solver
from core.prediction import Parametrisation, Prediction
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample
from core.solvers.ddim import DDIM
from core.training import Stage

__all__ = ["GuidanceDistillation", "GuidedProgressive", "GuidedTeacher", "guided_ground"]


Weighting: TypeAlias = Callable[[NoiseSchedule, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GuidedTeacher:
    """Classifier-free guidance with a scale per sample, cond.guidance_scale [B]; a Denoiser.

    uncond + guidance_scale (cond - uncond), so 1 is the conditional prediction; the w of arXiv
    2210.03142 is guidance_scale - 1. Raises ValueError without a scale or cond.uncond.
    """

    denoiser: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        if cond is None or cond.guidance_scale is None or cond.uncond is None:
            raise ValueError("GuidedTeacher needs cond.guidance_scale and cond.uncond.")
        n = len(x_t)
        both = [replace(cond, guidance_scale=None, uncond=None).expand(n), cond.uncond.expand(n)]
        if can_concatenate(both):
            twice = x_t.repeat(2, *[1] * (x_t.ndim - 1))
            given, without = self.denoiser(twice, t.repeat(2), concatenate(both)).split([n, n])
        else:
            given, without = (self.denoiser(x_t, t, each) for each in both)
        scale = per_sample(cond.guidance_scale.expand(n), x_t)
        return given.with_value(torch.lerp(without.value, given.value, scale))


def guided_ground(ground: Ground, min_scale: float = 1.0, max_scale: float = 4.0) -> Ground:
    """`ground` under guidance: batches carry uniform scales, and networks read them.

    Its teacher is the GuidedTeacher, so that any method can stand on it. A batch's own
    cond.uncond is kept; class labels without one are contrasted with the label -1, no class.

    Raises ValueError where the ground is not conditional, and for scales out of order.
    """
    if not min_scale < max_scale:
        raise ValueError(f"Guidance needs min_scale < max_scale, got {min_scale} and {max_scale}.")
    _with_uncond(ground.data(1, torch.Generator().manual_seed(0)).cond)

    def data(n: int, generator: torch.Generator) -> Batch:
        batch = ground.data(n, generator)
        scale = min_scale + (max_scale - min_scale) * torch.rand(n, generator=generator)
        scale = scale.to(batch.x0.device)
        return Batch(x0=batch.x0, cond=replace(_with_uncond(batch.cond), guidance_scale=scale))

    return replace(
        ground,
        teacher=GuidedTeacher(ground.teacher),
        data=data,
        make_network=partial(ground.make_network, reads_guidance_scale=True),
    )


def _with_uncond(cond: Conditioning | None) -> Conditioning:
    if cond is not None and cond.uncond is not None:
        return cond
    if cond is None or cond.labels is None:
        raise ValueError(
            "Guidance needs a condition to strengthen: take a ground whose batches carry class "
            "labels, or a cond with its uncond."
        )
    return replace(cond, uncond=Conditioning(labels=torch.full_like(cond.labels, -1)))


class GuidanceDistillation(Distillation):
    """max(SNR, 1) |D(x_t, t, w) - [(1 + w) D_cond - w D_uncond]|^2 over w (arXiv 2210.03142).

    Stage one of Meng et al.: the student takes the scale as an input, cond.guidance_scale = 1 + w,
    and needs as many steps as its teacher, at half the passes each. `distilled_ground` is what
    further methods stand on to take fewer steps: GuidedProgressive is their stage two.
    """

    card = MethodCard(
        name="guidance",
        title="Guidance distillation",
        family=Family.OUTPUT,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA, Needs.LABELS}),
        nfe=(8, 16, 32),
        reference="arXiv 2210.03142",
        idea="Give the network the guidance scale, and let one pass say what two did.",
        equation="max(SNR, 1) |D(x_t, w) - [(1 + w) D_cond - w D_uncond]|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        min_scale: float = 1.0,
        max_scale: float = 4.0,
        weighting: Weighting = truncated_snr,
        **settings: Unpack[Settings],
    ) -> None:
        """The method on a ground; see the class.

        Args:
            ground: With a condition; its teacher takes two passes.
            min_scale, max_scale: Scales are drawn uniformly between; ask the student for no other.
            weighting: (schedule, t [B]) to [B], the paper's omega.
            settings: Of every method.
        """
        super().__init__(guided_ground(ground, min_scale, max_scale), **settings)
        self.weighting = weighting
        self.student = self.ground.make_network()
        self.denoiser: Denoiser = NetworkDenoiser(
            self.student, ground.schedule, ground.parametrisation
        )

    def distilled_ground(self) -> Ground:
        """The guided ground with the student for its teacher."""
        return replace(self.ground, teacher=self.denoiser)

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
        """The guided x0 [B, ...] at the scales of `cond`."""
        return self.ground.teacher(x_t, t, cond).read(Parametrisation.X0)

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        t = self.ground.times(self.batch, generator)
        x_t = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        weight = per_sample(self.weighting(self.ground.schedule, t), x_t)
        error = self.denoiser(x_t, t, data.cond).x0 - self.target(x_t, t, data.cond)
        return (weight * error.square()).mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """DDIM; `cond` carries the guidance scale."""
        return sample_by_solver(self.denoiser, DDIM(), x, self.ground.grid(nfe), cond)


class GuidedProgressive(ProgressiveDistillation):
    """Guidance distillation, then progressive distillation of its student (arXiv 2210.03142).

    The deterministic sampler's two stages; half of the steps go to each. The scale stays an
    input to the end, and each round begins with the weights of the one before.
    """

    card = MethodCard(
        name="guided-progressive",
        title="Two-stage guidance distillation",
        family=Family.OUTPUT,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA, Needs.LABELS}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2210.03142",
        idea="Fold guidance into one pass, then halve the steps again and again.",
        equation="guidance, then max(SNR, 1) |D(x_t, w) - x~|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        min_scale: float = 1.0,
        max_scale: float = 4.0,
        weighting: Weighting = truncated_snr,
        teacher_steps: int = 16,
        nfe: int = 1,
        **settings: Unpack[Settings],
    ) -> None:
        half = settings["steps"] // 2
        if half < 1:
            raise ValueError(f"Two stages need at least 2 steps, got steps={settings['steps']}.")
        first: Settings = {**settings, "steps": settings["steps"] - half}
        self.guidance = GuidanceDistillation(
            ground, min_scale=min_scale, max_scale=max_scale, weighting=weighting, **first
        )
        second: Settings = {**settings, "steps": half}
        super().__init__(
            self.guidance.distilled_ground(), teacher_steps=teacher_steps, nfe=nfe, **second
        )

    def sample_in(
        self,
        stage: Stage,
        x: Tensor,
        nfe: int,
        cond: Conditioning | None,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """In the first stage of the one-pass student, in the steps that the rounds begin with."""
        if stage.players["student"].module is self.guidance.student:
            return self.guidance.sample(x, self.teacher_steps, cond, generator)
        return super().sample_in(stage, x, nfe, cond, generator)

    def modules(self) -> Mapping[str, nn.Module]:
        """Progressive's, and the one-pass student of stage one as "guidance"."""
        return {"guidance": self.guidance.student, **super().modules()}

    def stages(self) -> Sequence[Stage]:
        return [replace(stage, name="guidance") for stage in self.guidance.stages()] + [
            *super().stages()
        ]
