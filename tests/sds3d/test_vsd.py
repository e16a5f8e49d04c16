"""VSD in the loop: what the fake score is asked and taught, and that nothing of it gets lost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, per_sample
from sds3d.config import GenerateConfig
from sds3d.errors import ConfigError
from sds3d.events import Event, Warning
from sds3d.fake_score import FakeScore
from sds3d.optimize import Optimization, Optimized, StepClock, optimize
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.runs import CheckpointFile
from sds3d.supervision import supervise
from sds3d.views import ring

SIZE = 8


class Learner:
    """The denoiser of colours about a mean that depends on the camera; about zero at first."""

    def __init__(self, teacher: "Teacher", rank: int, generator: torch.Generator) -> None:
        self.teacher = teacher
        self.rank = rank
        self.calls = 0
        noise = 1e-3 * torch.randn(3, 2, generator=generator)
        self.trainable = {"shift": nn.Parameter(torch.zeros(3)), "turn": nn.Parameter(noise)}

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        assert cond.camera is not None
        angle = torch.deg2rad(cond.camera[:, :1])
        camera = torch.cat([angle.cos(), angle.sin()], dim=1)
        shift = self.trainable["shift"] + camera @ self.trainable["turn"].T
        if self.calls in self.teacher.broken_calls:
            shift = shift * math.nan
        self.calls += 1
        return self.teacher.predict(x_t, t, shift[:, :, None, None])


@dataclass
class Teacher:
    """The exact denoiser of colours about zero, of variance 1; another one about `mean`."""

    image_size: int = SIZE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    broken_calls: frozenset[int] = frozenset()
    learners: list[Learner] = field(default_factory=list)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text + 1, uncond=Conditioning(text=text))

    def predict(self, x_t: Tensor, t: Tensor, mean: Tensor) -> Prediction:
        alpha, sigma = per_sample(1 - t, x_t), per_sample(t, x_t)
        gain = alpha / (alpha.square() + sigma.square())
        return Prediction.from_x0(mean + gain * (x_t - alpha * mean), x_t, t, self.schedule)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        assert cond.text is not None
        return self.predict(x_t, t, 0.3 * cond.text[:, 0, :, None, None].expand(-1, 3, -1, -1))

    def adapt(self, rank: int, generator: torch.Generator) -> Learner:
        self.learners.append(Learner(self, rank, generator))
        return self.learners[-1]


OPTIONS = OptimizeConfig(
    method="vsd",
    steps=12,
    guidance_scale=1.0,
    camera_guidance=False,
    lora_learning_rate=0.02,
    resolutions=(SIZE,),
    resolution_milestones=(),
    step_size=0.2,
    occupancy_resolution=8,
    field=FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    ),
)


def config(**changed: Any) -> GenerateConfig:
    options = replace(OPTIONS, **changed)
    return GenerateConfig(prompt="a mug", device="cpu", checkpoint_seconds=1e6, optimize=options)


def run(
    given: GenerateConfig,
    folder: Path,
    *,
    stop_after: int = 999,
    teacher: Teacher | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Optimized:
    steps = iter(range(1, 1000))
    folder.mkdir(exist_ok=True)
    return optimize(
        given,
        teacher or Teacher(),
        checkpoint=CheckpointFile(folder),
        on_event=on_event,
        should_stop=lambda: next(steps) >= stop_after,
    )


def tensors(folder: Path) -> dict[str, Tensor]:
    saved = CheckpointFile(folder).load()
    assert saved is not None
    return saved[0]


# --- the gradient ----------------------------------------------------------------------------


def test_with_the_exact_score_of_one_image_it_is_sds() -> None:
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    t, views = torch.tensor([0.3, 0.5, 0.7]), ring(3, 20.0)

    class Exact(Learner):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_x0(x, x_t, t, self.schedule)

    class Knowing(Teacher):
        def adapt(self, rank: int, generator: torch.Generator) -> Learner:
            return Exact(self, rank, generator)

    found = [
        supervise(replace(OPTIONS, method=method, guidance_scale=7.0), Knowing(), "a mug", "")
        .gradient(x, t, views, torch.Generator().manual_seed(2))
        .clone()
        for method in ("vsd", "sds")
    ]
    assert found[0].norm() > 1
    assert torch.equal(*found)


def test_the_first_gradient_is_that_of_guidance_alone() -> None:
    """A twin that says what the teacher says leaves nothing to follow at scale 1."""

    class Twin(Learner):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return self.teacher(x_t, t, cond)

    class Same(Teacher):
        def adapt(self, rank: int, generator: torch.Generator) -> Learner:
            return Twin(self, rank, generator)

    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    t, views = torch.tensor([0.3, 0.7]), ring(2, 20.0)

    def gradient(**changed: Any) -> Tensor:
        supervision = supervise(replace(OPTIONS, **changed), Same(), "a mug", "")
        return supervision.gradient(x, t, views, torch.Generator().manual_seed(2))

    assert gradient().abs().max() == 0
    # CSD is guidance alone: s (D_uncond - D_cond); here it is what lies beyond scale 1.
    expected = gradient(method="csd", guidance_scale=3.0)
    torch.testing.assert_close(gradient(guidance_scale=4.0), expected)


# --- the fake score --------------------------------------------------------------------------


def test_the_fake_score_learns_each_side_of_what_it_is_shown() -> None:
    """Red from the front, blue from behind: the best shift of a colour is the colour itself."""
    teacher = Teacher()
    learner = Learner(teacher, 1, torch.Generator().manual_seed(0))
    fake = FakeScore(learner, learning_rate=0.05)
    camera = torch.tensor([[0.0, 0.0], [180.0, 0.0]])
    colours = torch.tensor([[0.8, -0.5, -0.5], [-0.5, -0.5, 0.8]])
    x = colours[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    cond = teacher.encode("a mug").with_camera(camera)
    for step in range(150):
        assert fake.learn(x, cond, torch.Generator().manual_seed(step))
        fake.step(1.0 if step < 100 else 0.1)
    with torch.no_grad():
        turn = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) @ learner.trainable["turn"].T
    learnt = learner.trainable["shift"].detach() + turn
    torch.testing.assert_close(learnt, colours, atol=0.05, rtol=0)


def test_it_is_asked_with_the_rank_and_the_seed_of_the_run() -> None:
    teacher = Teacher()
    for seed in (0, 0, 1):
        Optimization(replace(config(lora_rank=7), seed=seed), teacher)
    first, again, other = (learner.trainable["turn"] for learner in teacher.learners)
    assert [learner.rank for learner in teacher.learners] == [7, 7, 7]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_rate_of_the_twin_is_its_own() -> None:
    moved = []
    for rate in (0.0, 0.01, 0.04):
        loop = Optimization(config(lora_learning_rate=rate), teacher := Teacher())
        before = teacher.learners[0].trainable["shift"].detach().clone()
        loop.advance(StepClock())
        after = teacher.learners[0].trainable["shift"].detach()
        moved.append(float((after - before).abs().max()))
    # Adam's first step is as long as its rate.
    assert moved == pytest.approx([0.0, 0.01, 0.04], rel=1e-3)


# --- particles -------------------------------------------------------------------------------


def test_each_step_moves_the_next_particle_and_no_other() -> None:
    loop = Optimization(config(particles=3), Teacher())
    starts = [particle.state_dict()["field.encoding.table"].clone() for particle in loop.particles]
    assert not torch.equal(starts[0], starts[1])
    for turn in range(5):
        before = [
            {name: value.clone() for name, value in particle.state_dict().items()}
            for particle in loop.particles
        ]
        loop.advance(StepClock())
        for number, particle in enumerate(loop.particles):
            after = particle.state_dict()
            same = all(torch.equal(before[number][name], after[name]) for name in after)
            assert same == (number != turn % 3)


@pytest.mark.parametrize("particles", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(particles: int, tmp_path: Path) -> None:
    given = config(particles=particles)
    whole = run(given, tmp_path / "whole")
    for stop in (5, 2):
        assert run(given, tmp_path / "halves", stop_after=stop).stopped
    run(given, tmp_path / "halves")
    expected, found = tensors(tmp_path / "whole"), tensors(tmp_path / "halves")
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]
    # The twin's weights and moments are part of it, and those of each particle.
    assert {"fake.weights.shift", "fake.adam.0.exp_avg", "fake.adam.1.exp_avg_sq"} <= found.keys()
    assert found["fake.weights.shift"].abs().max() > 0
    assert ("particle2.field.encoding.table" in found) == (particles == 2)
    assert len(whole.particles) == particles


# --- broken numbers --------------------------------------------------------------------------


def test_a_broken_fake_score_is_undone_with_everything_else(tmp_path: Path) -> None:
    events: list[Event] = []
    # Each step asks it twice: for the gradient and to learn. This is a lesson.
    teacher = Teacher(broken_calls=frozenset({7}))
    run(config(), tmp_path / "run", teacher=teacher, on_event=events.append)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert "back to step 0" in warning.text
    assert "0.5 of the learning rate" in warning.text
    after = tensors(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert int(after["fake.adam.0.step"]) == 12
    assert teacher.learners[0].calls == 2 * (4 + 12)


def test_after_a_rollback_the_twin_is_what_it_was(tmp_path: Path) -> None:
    loop = Optimization(config(), teacher := Teacher())
    loop.advance(StepClock())
    snapshot = loop.tensors(), loop.meta()
    loop.advance(StepClock())
    moved = teacher.learners[0].trainable["shift"].detach().clone()
    loop.roll_back(*snapshot)
    back = teacher.learners[0].trainable["shift"].detach().clone()
    assert not torch.equal(moved, back)
    assert torch.equal(back, snapshot[0]["fake.weights.shift"])
    loop.advance(StepClock())
    again = teacher.learners[0].trainable["shift"].detach()
    # The same step at half the rate.
    torch.testing.assert_close(again - back, (moved - back) / 2)


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "flag", "remedy"),
    [
        ({"method": "sds", "particles": 2}, "--particles", "--method vsd"),
        ({"particles": 0}, "--particles", "at least 1"),
        ({"lora_rank": 0}, "--lora-rank", "at least 1"),
        ({"lora_learning_rate": 2.0}, "--lora-learning-rate", "at most 1"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(
    changed: dict[str, Any], flag: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(OPTIONS, **changed)
    assert str(caught.value).startswith(f"{flag} is ")
    assert remedy in str(caught.value)


def test_a_teacher_that_cannot_learn_is_refused() -> None:
    class Fixed(Teacher):
        adapt: Any = None

    with pytest.raises(ConfigError, match="--method is vsd"):
        supervise(OPTIONS, Fixed(), "a mug", "")
