"""A student that is watched: what is seen of it, what that costs, and that it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.field.reflow import FLOW_STEPS, Reflow
from core.distillation.field.tract import TRACT
from core.distillation.generator.particle_vsd import ParticleVSD
from core.distillation.method import Distillation
from core.distillation.point_cloud_ground import point_cloud_ground
from core.distillation.students import sample_by_solver
from core.solvers.ddim import DDIM
from core.training import History, train
from sds3d.assets import shipped
from sds3d.distill.catalogue import find_method, make_method
from sds3d.distill.frames import PIXELS, Frames
from sds3d.distill.grounds import GroundName, NamedGround, load_clouds, named_ground
from sds3d.distill.run import DistillConfig, distill
from sds3d.distill.watch import TEACHER_STEPS, Watch
from sds3d.errors import Interrupted
from sds3d.events import Distilled, DistillPicture, Event
from sds3d.jobs.previews import Ration


def _method(name: str, ground: NamedGround, **settings: Any) -> Distillation:
    options: dict[str, Any] = {"steps": 8, "nfe": 1, "batch": 8, "learning_rate": 1e-3, "seed": 0}
    return make_method(find_method(name), ground, **{**options, **settings})


class _Teacher(Distillation):
    """A student that is its teacher."""

    card = find_method("progressive").card

    def __init__(self, ground: NamedGround) -> None:
        super().__init__(ground.ground, steps=2, batch=4)
        self.student = ground.ground.make_network()

    def loss(self, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        del nfe, generator
        grid = self.ground.grid(TEACHER_STEPS)
        return sample_by_solver(self.ground.teacher, DDIM(), x, grid, cond)


@pytest.mark.parametrize("name", ["mixture", "mixture-1d", "digits", "clouds"])
def test_student_and_teacher_are_shown_from_the_same_noise(
    name: GroundName, tmp_path: Path
) -> None:
    ground = named_ground(name)
    seen: list[float | None] = []
    watch = Watch(
        _Teacher(ground), ground, nfe=2, folder=tmp_path,
        taken=lambda *said: seen.append(said[2]), ration=Ration(),
    )  # fmt: skip
    watch.take(None, History())
    student, teacher, few = (
        np.asarray(Image.open(tmp_path / file).convert("RGBA"))
        for file in ("student.png", "teacher.png", "teacher-few.png")
    )
    assert student.shape[1] == PIXELS
    assert np.array_equal(student, teacher)
    assert not np.array_equal(few, teacher)
    assert seen == [None if name == "clouds" else 0.0]


def test_watching_changes_no_bit_of_the_student(tmp_path: Path) -> None:
    files = []
    for every in (0.0, 1e-6):
        config = DistillConfig(
            method="cd", steps=40, nfe=2, batch=16, samples=100, picture_every=every,
            out=tmp_path / str(every),
        )  # fmt: skip
        events: list[Event] = []
        folder = distill(config, events.append, lambda: False)
        pictures = [e for e in events if isinstance(e, DistillPicture)]
        steps = [e.step for e in pictures]
        assert steps == sorted(steps)
        assert steps == [40] if every == 0 else (steps[0], steps[-1]) == (0, 40)
        assert isinstance(events[-1], Distilled)
        course = json.loads((folder / "history.json").read_text())
        assert list(map(int, course["distance"])) == sorted(set(steps))
        assert course["distance"]["40"] == pictures[-1].to_teacher
        assert sum(map(len, course["losses"].values())) > 1
        files.append([(folder / f"student.{end}").read_bytes() for end in ("safetensors", "png")])
    assert files[0] == files[1]


def test_an_interrupted_training_keeps_its_curve(tmp_path: Path) -> None:
    config = DistillConfig(
        method="kd", steps=12, batch=8, samples=100, picture_every=1e-6, out=tmp_path
    )
    asked = iter([False] * 5 + [True])
    first: list[Event] = []
    with pytest.raises(Interrupted):
        distill(config, first.append, lambda: next(asked))
    second: list[Event] = []
    folder = distill(config, second.append, lambda: False)
    steps = [e.step for e in first + second if isinstance(e, DistillPicture)]
    assert steps.count(0) == 1
    distance = json.loads((folder / "history.json").read_text())["distance"]
    assert sorted(map(int, distance)) == sorted(set(steps))


def test_pictures_take_a_tenth_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, cost = [0.0], 0.3
    spent: list[float] = []
    draw = Frames.draw

    def slowly(frames: Frames, states: list[Tensor]) -> bytes:
        clock[0] += cost
        spent.append(cost)
        return draw(frames, states)

    monkeypatch.setattr(Frames, "draw", slowly)
    ground = named_ground("mixture-1d")
    method = _method("kd", ground)
    watch = Watch(
        method, ground, nfe=1, folder=tmp_path, taken=lambda *_: None,
        ration=Ration(seconds=1.0, now=lambda: clock[0]),
    )  # fmt: skip
    (stage,) = method.stages()
    for _ in range(4000):
        clock[0] += 0.01
        watch(stage, History())
    assert len(spent) >= 8
    assert sum(spent) <= 0.1 * clock[0] + 1e-9


def test_what_a_stage_trains_is_what_is_seen() -> None:
    ground = named_ground("mixture-1d")
    generator = torch.Generator().manual_seed(0)
    x = ground.ground.noise(5, generator)
    for kind, lengths in (
        (ProgressiveDistillation, [8, 4, 2, 1]),
        (TRACT, [4, 1]),
        (Reflow, [FLOW_STEPS, FLOW_STEPS, 1]),
    ):
        method = _method(kind.card.name, ground)
        stages = method.stages()
        before = [method.sample_in(stage, x, 1, None, generator) for stage in stages]
        assert [len(states) - 1 for states in before] == lengths
        # Only the trained player's weights are moved: its own stage alone sees it.
        for k, stage in enumerate(stages):
            with torch.no_grad():
                for parameter in stage.players["student"].module.parameters():
                    parameter.add_(0.1)
            after = [method.sample_in(s, x, 1, None, generator)[-1] for s in stages]
            moved = [not torch.equal(a, b[-1]) for a, b in zip(after, before, strict=True)]
            assert moved == [n == k for n in range(len(stages))]
            with torch.no_grad():
                for parameter in stage.players["student"].module.parameters():
                    parameter.sub_(0.1)
            before = [method.sample_in(s, x, 1, None, generator) for s in stages]


def test_two_stages_of_guidance_are_both_seen() -> None:
    ground = named_ground("mixture")
    method = _method("guided-progressive", ground)
    x = ground.ground.noise(3, torch.Generator().manual_seed(0))
    cond = Conditioning(labels=torch.tensor([0, 1, -1]), guidance_scale=torch.ones(3))
    counts = [
        len(method.sample_in(stage, x, 1, cond, torch.Generator())) - 1 for stage in method.stages()
    ]
    assert counts == [16, 8, 4, 2, 1]


def test_particles_are_watched_and_measured_without_their_classes(tmp_path: Path) -> None:
    assert not ParticleVSD.is_conditional
    config = DistillConfig(
        method="vsd", steps=4, batch=8, samples=100, picture_every=1e-6, out=tmp_path
    )
    events: list[Event] = []
    distill(config, events.append, lambda: False)
    assert isinstance(events[-1], Distilled)


def test_samples_far_away_and_no_numbers_can_be_drawn() -> None:
    clouds = replace(
        named_ground("clouds"), ground=point_cloud_ground(load_clouds(shipped("clouds"))[:4, :9])
    )
    for ground in (named_ground("mixture"), named_ground("mixture-1d"), clouds):
        shape = (20, *ground.ground.shape)
        states = [torch.full(shape, value) for value in (1e9, float("nan"), float("-inf"))]
        for has_paths in (True, False):
            data = Frames(ground, has_paths=has_paths).draw(states)
            assert data.startswith(b"\x89PNG")


def test_training_on_clouds_is_watched(tmp_path: Path) -> None:
    few = load_clouds(shipped("clouds"))[:6, :6]
    ground = replace(named_ground("clouds"), ground=point_cloud_ground(few, width=16))
    method = _method("psf", ground, steps=3)
    pictures = []

    def taken(*_: object) -> None:
        pictures.append((tmp_path / "student.png").read_bytes())

    watch = Watch(method, ground, nfe=1, folder=tmp_path, taken=taken, ration=Ration())

    def progress(stage: Any, history: History) -> bool:
        watch.take(stage, history)
        return False

    train(method, progress=progress)
    assert len(set(pictures)) == 3
