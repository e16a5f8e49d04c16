"""Every distillation method there is, and how one is made for a ground."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch

from core.distillation.field.classifier_features import ClassifierFeatureDistillation
from core.distillation.field.consistency import ConsistencyDistillation, ConsistencyTraining
from core.distillation.field.coupling import CurvatureCoupling
from core.distillation.field.ctm import CTM
from core.distillation.field.dsno import DSNO
from core.distillation.field.guidance import GuidanceDistillation, GuidedProgressive
from core.distillation.field.interpolants import StochasticInterpolants
from core.distillation.field.knowledge import KnowledgeDistillation
from core.distillation.field.lcm import LatentConsistency
from core.distillation.field.mean_flow import MeanFlow
from core.distillation.field.mmd_ddm import MMDFineTuning
from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.field.psf import PointStraightFlow
from core.distillation.field.reflow import Reflow
from core.distillation.field.riemannian import RiemannianFlowMatching
from core.distillation.field.self_consistent_velocity import SelfConsistentVelocity
from core.distillation.field.sft_pg import PolicyGradient
from core.distillation.field.shortcut import ShortcutModel
from core.distillation.field.tract import TRACT
from core.distillation.generator.adversarial import ADD
from core.distillation.generator.conditional_kl import ConditionalKL
from core.distillation.generator.diff_instruct import DiffInstruct
from core.distillation.generator.dmd import DMD
from core.distillation.generator.dmd2 import DMD2
from core.distillation.generator.ladd import LADD
from core.distillation.generator.particle_vsd import ParticleVSD
from core.distillation.generator.sds_generator import SDSGenerator
from core.distillation.generator.sid import SiD
from core.distillation.generator.ufogen import UFOGen
from core.distillation.method import Distillation, MethodCard, Needs

from ..errors import BadInput, ConfigError
from .grounds import NamedGround
from .refusals import ground_refusal, nfe_refusal
from .samplers import SAMPLERS

METHODS: tuple[type[Distillation], ...] = (
    KnowledgeDistillation,
    ProgressiveDistillation,
    GuidanceDistillation,
    GuidedProgressive,
    ClassifierFeatureDistillation,
    ConsistencyDistillation,
    ConsistencyTraining,
    TRACT,
    CTM,
    LatentConsistency,
    Reflow,
    PointStraightFlow,
    CurvatureCoupling,
    StochasticInterpolants,
    RiemannianFlowMatching,
    SelfConsistentVelocity,
    DSNO,
    PolicyGradient,
    MMDFineTuning,
    MeanFlow,
    ShortcutModel,
    ConditionalKL,
    SDSGenerator,
    ParticleVSD,
    DiffInstruct,
    DMD,
    DMD2,
    SiD,
    ADD,
    LADD,
    UFOGen,
)


SUMMED: dict[type[Distillation], tuple[str, float]] = {
    ADD: ("distillation_weight", 0.25),
    UFOGen: ("reconstruction_weight", 0.05),
}
"""Weights, as they are in the plane, of terms that are sums over coordinates beside a critic's one
number: of images they would drown the critic, and with it what keeps samples apart."""


def find_method(name: str) -> type[Distillation]:
    """The method whose card has this name. Raises BadInput that names the nearest ones."""
    for method in METHODS:
        if method.card.name == name:
            return method
    names = [method.card.name for method in METHODS]
    near = difflib.get_close_matches(name, names, 3, 0.4)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise BadInput(
        f"there is no distillation method {name!r}; {hint}`sds3d methods` lists them all"
    )


def make_method(
    method: type[Distillation],
    ground: NamedGround,
    *,
    steps: int,
    nfe: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> Distillation:
    """A method ready to train; its networks are drawn from `seed`.

    Raises BadInput where ground, method and nfe do not go together, with the remedy.
    """
    card = method.card
    words = card_as_dict(method)
    refused = ground_refusal(words, ground.name) or nfe_refusal(words, nfe)
    if refused is not None:
        raise BadInput(refused)
    extra: dict[str, Any] = {}
    if Needs.CLASSIFIER in card.needs:
        extra["classifier"] = ground.classifier
        if ground.mixture is not None:
            # A mixture's log posteriors are linear in x, and sharpening those only stretches them.
            extra["temperature"] = 1.0
    if words["makes_nfe"]:
        extra["nfe"] = nfe
    if method in SUMMED:
        option, in_the_plane = SUMMED[method]
        extra[option] = in_the_plane * min(1.0, 2 / torch.Size(ground.ground.shape).numel())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return method(
                ground.ground, steps=steps, batch=batch, learning_rate=learning_rate, **extra
            )
        except ValueError as error:
            raise ConfigError(f"{card.name} on {ground.name}: {error}") from error


def table() -> str:
    """All methods, then all samplers, as lines of text, by family."""
    lines: list[str] = []
    for family in dict.fromkeys(method.card.family for method in METHODS):
        lines.append(f"{family.value}")
        for card in (m.card for m in METHODS if m.card.family is family):
            needs = ", ".join(sorted(need.value for need in card.needs))
            nfe = "/".join(map(str, card.nfe))
            lines.append(f"  {card.name:<20}{card.title}")
            lines.append(f"  {'':<20}{card.student.value}, NFE {nfe}, needs {needs}")
            lines.append(f"  {'':<20}teacher: {teacher_form(card)}")
            lines.append(f"  {'':<20}{card.reference}: {card.idea}")
    for family in dict.fromkeys(sampler.family for sampler in SAMPLERS):
        lines.append(family)
        for sampler in (each for each in SAMPLERS if each.family == family):
            lines.append(f"  {sampler.name:<24}{sampler.title}")
            lines.append(f"  {'':<24}{sampler.made_by}")
            lines.append(f"  {'':<24}order {sampler.order}; calls in a step: {sampler.calls}")
            lines.append(f"  {'':<24}{sampler.reference}: {sampler.idea}")
    return "\n".join(lines)


def teacher_form(card: MethodCard) -> str:
    """What the card's `needs` say of the teacher, in words.

    All methods ask at any time between 0 and 1. A teacher that was trained on whole timesteps
    answers between them too (core.schedule.from_diffusers), so that none needs a discrete one.
    """
    if Needs.TEACHER not in card.needs:
        return "none, learns from data"
    told = "told classes" if Needs.LABELS in card.needs else "with or without classes"
    judge = ", with a classifier beside it" if Needs.CLASSIFIER in card.needs else ""
    return f"of continuous time, {told}{judge}"


def card_as_dict(method: type[Distillation]) -> dict[str, Any]:
    """A method's card as plain values for JSON.

    `makes_nfe`: the student is made for one number of evaluations, which the method judges itself.
    """
    card = method.card
    return {
        "name": card.name,
        "title": card.title,
        "family": card.family.value,
        "student": card.student.value,
        "needs": sorted(need.value for need in card.needs),
        "teacher": teacher_form(card),
        "nfe": list(card.nfe),
        # Methods whose student is made for one number of steps say so by taking it.
        "makes_nfe": "nfe" in inspect.signature(method).parameters,
        "reference": card.reference,
        "idea": card.idea,
        "equation": card.equation,
    }
