"""What every method of the output family must do, on every kind of schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from core.distillation.field.classifier_features import (
    ClassifierFeatureDistillation,
    mixture_classifier,
)
from core.distillation.field.consistency import ConsistencyDistillation, ConsistencyTraining
from core.distillation.field.ctm import CTM
from core.distillation.field.guidance import GuidanceDistillation, GuidedProgressive
from core.distillation.field.knowledge import KnowledgeDistillation
from core.distillation.field.lcm import LatentConsistency
from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.field.shortcut import ShortcutModel
from core.distillation.field.tract import TRACT
from core.distillation.method import Distillation, Family, Ground, Needs
from core.distillation.mixture_ground import mixture_ground, ring_mixture
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule, VPSchedule
from core.training import train


def classifier_features(ground: Ground, *, batch: int, steps: int) -> Distillation:
    classifier = mixture_classifier(ring_mixture())
    return ClassifierFeatureDistillation(
        ground, classifier=classifier, dataset_weight=0.1, batch=batch, steps=steps
    )


METHODS: dict[str, Callable[..., Distillation]] = {
    "kd": KnowledgeDistillation,
    "progressive": ProgressiveDistillation,
    "guidance": GuidanceDistillation,
    "guided-progressive": GuidedProgressive,
    "cfd": classifier_features,
    "cd": ConsistencyDistillation,
    "ct": ConsistencyTraining,
    "tract": TRACT,
    "ctm": CTM,
    "lcm": LatentConsistency,
    "shortcut": ShortcutModel,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "schedule",
    [FlowSchedule(), CosineSchedule(), VPSchedule(), VESchedule(sigma_min=0.01, sigma_max=20.0)],
    ids=["flow", "cosine", "vp", "ve"],
)
def test_a_method_trains_and_samples_on_any_schedule(name: str, schedule: NoiseSchedule) -> None:
    """Every stage is entered, every student moves, a sample has nfe + 1 finite states."""
    torch.manual_seed(0)
    ground = mixture_ground(ring_mixture(), schedule, with_labels=True, width=16)
    method = METHODS[name](ground, batch=16, steps=8)
    before = {
        (key, i): p.detach().clone()
        for key, module in method.modules().items()
        for i, p in enumerate(module.parameters())
    }
    history = train(method, seed=3)
    assert history.step == 8
    assert all(torch.isfinite(torch.tensor(losses)).all() for losses in history.losses.values())
    for key, module in method.modules().items():
        moved = [not torch.equal(before[key, i], p) for i, p in enumerate(module.parameters())]
        assert all(moved), f"some of {key} stood still"
    generator = torch.Generator().manual_seed(1)
    cond = method.ground.data(5, generator).cond
    nfe = method.card.nfe[0]
    with torch.no_grad():
        states = method.sample(method.noise(5, generator), nfe, cond, generator)
    assert len(states) == nfe + 1
    assert all(state.shape == (5, 2) and bool(torch.isfinite(state).all()) for state in states)


def test_cards_say_which_is_which() -> None:
    ground = mixture_ground(ring_mixture(), with_labels=True)
    cards = {name: make(ground, batch=4, steps=8).card for name, make in METHODS.items()}
    assert {name: card.name for name, card in cards.items()} == {name: name for name in METHODS}
    assert all(card.family is Family.OUTPUT for card in cards.values())
    teacherless = {name for name, card in cards.items() if Needs.TEACHER not in card.needs}
    assert teacherless == {"ct", "shortcut"}


@pytest.mark.parametrize("name", ["ct", "shortcut"])
def test_what_needs_no_teacher_asks_none(name: str) -> None:
    """Their loss is that of a ground whose teacher only knows its schedule."""

    class Mute:
        schedule = FlowSchedule()

        def __call__(self, *args: object) -> None:
            raise AssertionError("the teacher was asked")

    ground = mixture_ground(ring_mixture())
    mute = replace(ground)
    object.__setattr__(mute, "teacher", Mute())
    losses = []
    for each in (ground, mute):
        torch.manual_seed(0)
        losses.append(METHODS[name](each, batch=16, steps=8).loss(torch.Generator().manual_seed(1)))
    assert torch.equal(*losses)


def test_a_teachers_network_gets_no_gradient() -> None:
    """Stage two of guidance is taught by a network that still asks for gradients."""
    torch.manual_seed(0)
    ground = mixture_ground(ring_mixture(), with_labels=True, width=16)
    method = GuidedProgressive(ground, teacher_steps=4, nfe=2, batch=16, steps=4)
    _, stage = method.stages()
    stage.players["student"].loss(torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is None for p in method.guidance.student.parameters())
    assert all(p.grad is not None for p in method.student.parameters())
