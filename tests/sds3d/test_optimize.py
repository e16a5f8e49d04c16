"""The loop: repeatable to the bit, safe against broken numbers; it finds what it is asked for."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.frozen import freeze, parameter_sha256
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.toybox import ToyboxTeacher
from core.teachers.toybox_network import (
    make_network,
    make_tokenizer,
)
from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.rendering import RenderConfig, render
from sds3d import field_representation
from sds3d import optimize as loop_module
from sds3d.config import GenerateConfig
from sds3d.errors import Diverged
from sds3d.events import SOUND, Event, Health, Step, Warning
from sds3d.field_representation import (
    FieldRepresentation,
    complaint_about,
    make_field,
    regularization,
    resolution_at,
)
from sds3d.optimize import (
    SNAPSHOT_INTERVAL,
    Optimization,
    Optimized,
    StepClock,
    optimize,
    sample_timesteps,
)
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.runs import CheckpointFile
from sds3d.seeds import step_seed
from sds3d.views import DISTANCE, DISTANCE_JITTER, FOVY_DEG, ring

SIZE = 24
RADIUS = 0.55
CENTRE = (0.25, 0.15, 0.0)

SMALL = FieldOptions(
    n_levels=4, log2_table_size=11, base_resolution=4, finest_resolution=24, hidden_dim=16
)
OPTIONS = OptimizeConfig(
    camera_guidance=False,
    timestep_max=(0.98, 0.48),
    timestep_min=(0.4, 0.1),
    steps=60,
    guidance_scale=1.0,
    views_per_step=2,
    resolutions=(12, 16),
    resolution_milestones=(0.5,),
    step_size=0.08,
    occupancy_resolution=16,
    occupancy_interval=8,
    field=SMALL,
)


def picture(camera: Tensor) -> tuple[Tensor, Tensor]:
    """Exact (colours [B, 3, H, W] in [0, 1], silhouette [B, H, W]) of a two-coloured ball."""
    c2w = orbit_c2w(camera[:, 0], camera[:, 1], DISTANCE)
    rays_o, rays_d = camera_rays(c2w, FOVY_DEG, SIZE, SIZE)
    offset = rays_o - torch.tensor(CENTRE)
    along = -(offset * rays_d).sum(dim=-1)
    inside = RADIUS**2 - (offset.square().sum(dim=-1) - along.square())
    entry = offset + (along - inside.clamp(min=0).sqrt())[..., None] * rays_d
    red = (entry[..., :1] > 0).float()
    colour = torch.cat([0.2 + 0.7 * red, torch.full_like(red, 0.2), 0.9 - 0.7 * red], dim=-1)
    return colour.movedim(-1, 1), inside > 0


@dataclass
class BallTeacher:
    """Knows one thing exactly: whatever the noise, the picture is that of the ball.

    The background is the image's own, as far as the mean over its noisy pixels tells.
    """

    image_size: int = SIZE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    calls: int = 0
    broken_calls: frozenset[int] = frozenset()

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        assert cond.camera is not None
        assert x_t.shape[1:] == (3, SIZE, SIZE)
        colour, mask = picture(cond.camera)
        outside = ~mask[:, None]
        seen = (x_t * outside).sum(dim=(2, 3)) / outside.sum(dim=(2, 3)) / (1 - t[:, None])
        x0 = torch.where(outside, seen.clamp(-1, 1)[:, :, None, None], 2 * colour - 1)
        if self.calls in self.broken_calls:
            x0 = x0.clone()
            x0[0, 1, 2, 3] = math.nan
        self.calls += 1
        return Prediction.from_x0(x0, x_t, t, self.schedule)


def config(seed: int = 0, **options: Any) -> GenerateConfig:
    return GenerateConfig(
        prompt="a ball",
        seed=seed,
        device="cpu",
        checkpoint_seconds=1e6,
        optimize=replace(OPTIONS, **options),
    )


def run(
    given: GenerateConfig,
    teacher: Any = None,
    *,
    checkpoint: CheckpointFile | None = None,
    events: list[Event] | None = None,
    stop_after: int | None = None,
) -> Optimized:
    """The loop, asked to stop once `stop_after` steps are done."""
    heard: list[Event] = [] if events is None else events

    def should_stop() -> bool:
        steps = [event.step for event in heard if isinstance(event, Step)]
        return stop_after is not None and bool(steps) and steps[-1] >= stop_after

    return optimize(
        given,
        BallTeacher() if teacher is None else teacher,
        checkpoint=checkpoint,
        on_event=heard.append,
        should_stop=should_stop,
    )


def field_of(result: Optimized | Optimization) -> RadianceField:
    """The one field that was optimised."""
    (particle,) = result.particles
    assert isinstance(particle, FieldRepresentation)
    return particle.field


def state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = CheckpointFile(folder).load()
    assert saved is not None
    return saved


# --- the same bits ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(config(), checkpoint=CheckpointFile(folder))
    return folder


@pytest.mark.parametrize(
    "stops", [(25,), (24,), (1,), (59,), (13, 40), (8, 30)], ids=lambda stops: str(stops)
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    stops: tuple[int, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    for stop in stops:
        stopped = run(config(), checkpoint=CheckpointFile(tmp_path), stop_after=stop)
        assert stopped.stopped
        assert stopped.step == state(tmp_path)[1]["step"] == stop
    last = run(config(), checkpoint=CheckpointFile(tmp_path))
    assert not last.stopped
    tensors, meta = state(tmp_path)
    expected, expected_meta = state(uninterrupted)
    assert meta == expected_meta
    assert meta["step"] == 60
    assert tensors.keys() == expected.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], expected[name])]
    assert not different
    # What is compared is the whole of it: the field, its moments, the grid; and it moved.
    assert {name.split(".")[0] for name in tensors} == {"field", "occupancy", "adam", "snapshot"}
    start = make_field(OPTIONS, 0).state_dict()
    assert not any(torch.equal(start[n], tensors[f"field.{n}"]) for n in start)


@pytest.mark.parametrize(("at", "kept"), [(28, 25), (7, None)])
def test_where_memory_ends_the_last_whole_state_is_saved_and_leads_to_the_same_bits(
    at: int, kept: int | None, uninterrupted: Path, tmp_path: Path
) -> None:
    class Small(BallTeacher):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            steps = sum(isinstance(event, Step) for event in events)
            if steps == at:
                torch.empty(2**46)  # refused at once, as a RuntimeError
            return super().__call__(x_t, t, cond)

    events: list[Event] = []
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        run(config(), Small(), checkpoint=CheckpointFile(tmp_path), events=events)
    saved = CheckpointFile(tmp_path).load()
    assert (None if saved is None else saved[1]["step"]) == kept
    run(config(), checkpoint=CheckpointFile(tmp_path))
    tensors, expected = state(tmp_path)[0], state(uninterrupted)[0]
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_another_seed_is_another_run(uninterrupted: Path, tmp_path: Path) -> None:
    run(config(seed=1, steps=10), checkpoint=CheckpointFile(tmp_path))
    tensors, expected = state(tmp_path)[0], state(uninterrupted)[0]
    assert not torch.equal(tensors["field.encoding.table"], expected["field.encoding.table"])


def test_the_global_generator_does_not_matter() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(field_of(run(config(steps=10))).state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_finished_run_is_taken_as_it_is_with_its_complaint(tmp_path: Path) -> None:
    thin = config(steps=3, entropy_weight=0.0)
    checkpoint = CheckpointFile(tmp_path)
    first = run(thin, checkpoint=checkpoint)
    tensors, meta = state(tmp_path)
    checkpoint.save(tensors, {**meta, "complaint": "fog: as it was found"})
    teacher, events = BallTeacher(), []
    again = run(thin, teacher, checkpoint=checkpoint, events=events)
    assert teacher.calls == 0
    assert events == []
    assert again.step == 3
    assert again.health == ["fog: as it was found"]
    for name, tensor in field_of(first).state_dict().items():
        assert torch.equal(field_of(again).state_dict()[name], tensor)


def test_neighbouring_seeds_and_steps_have_generators_of_their_own() -> None:
    seeds = [step_seed(seed, step) for seed in range(40) for step in range(-1, 400)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0 <= step_seed(2**63 - 1, 10**6) < 2**63
    # Neighbours share no more bits than chance has it: 31.5 of 63 differ, give or take.
    flipped = [(a ^ b).bit_count() for a, b in itertools.pairwise(seeds)]
    assert 31 < sum(flipped) / len(flipped) < 32


# --- broken numbers --------------------------------------------------------------------------


class Probe(Optimization):
    """The loop's state, kept for a look after the run."""

    made: "list[Probe]" = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rates: list[tuple[int, list[float]]] = []
        self.rolled_back_to: list[int] = []
        Probe.made.append(self)

    def advance(self, clock: StepClock) -> Any:
        step, report = self.step, super().advance(clock)
        self.rates.append((step, [group["lr"] for group in self.optimizer.param_groups]))
        return report

    def roll_back(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        super().roll_back(tensors, meta)
        self.rolled_back_to.append(self.step)
        own = self.tensors()
        assert own.keys() == tensors.keys()
        assert all(torch.equal(own[name], tensors[name]) for name in own)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Probe]]:
    monkeypatch.setattr(loop_module, "Optimization", Probe)
    yield Probe.made
    Probe.made.clear()


def finite(result: Optimized) -> bool:
    return all(bool(p.isfinite().all()) for p in field_of(result).parameters())


@pytest.mark.parametrize("step", [0, 7, SNAPSHOT_INTERVAL, SNAPSHOT_INTERVAL + 9])
def test_a_nan_is_found_in_its_step_undone_and_the_rate_halved(
    step: int, probe: list[Probe]
) -> None:
    events: list[Event] = []
    result = run(config(), BallTeacher(broken_calls=frozenset({step})), events=events)
    (seen,) = probe
    back = step // SNAPSHOT_INTERVAL * SNAPSHOT_INTERVAL
    # The broken step comes after `step` good ones and the next begins at the snapshot.
    assert [s for s, _ in seen.rates] == [*range(step + 1), *range(back, 60)]
    assert seen.rolled_back_to == [back]
    before, after = dict(seen.rates[: step + 1])[back], seen.rates[step + 1][1]
    assert after == pytest.approx([rate / 2 for rate in before])
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert f"step {back}" in warning.text
    assert "0.5 of the learning rate" in warning.text
    assert result.step == 60
    assert finite(result)
    # No step is reported for the broken one.
    assert sum(isinstance(event, Step) for event in events) == 60 + step - back


def test_a_broken_gradient_of_the_field_alone_is_found_too(
    monkeypatch: pytest.MonkeyPatch, probe: list[Probe]
) -> None:
    surrogate, calls = loop_module.surrogate_loss, []

    def poisoned(x: Tensor, gradient: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            x.register_hook(lambda grad: torch.full_like(grad, torch.inf))
        return surrogate(x, gradient)

    monkeypatch.setattr(loop_module, "surrogate_loss", poisoned)
    result = run(config(steps=20))
    assert probe[0].rolled_back_to == [0]
    assert len(calls) == 5 + 20
    assert finite(result)


def test_three_rollbacks_are_survived_and_a_fourth_is_the_end(tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(config(), BallTeacher(broken_calls=frozenset({3, 6, 9})), events=events)
    assert result.step == 60
    assert finite(result)
    texts = [event.text for event in events if isinstance(event, Warning)]
    assert [
        f"{share} of the learning rate" in text
        for share, text in zip(("0.5", "0.25", "0.125"), texts, strict=True)
    ] == [True] * 3
    with pytest.raises(Diverged) as caught:
        run(config(), BallTeacher(broken_calls=frozenset({3, 6, 9, 12})))
    assert "--encoding-learning-rate" in str(caught.value)
    assert "--guidance-scale" in str(caught.value)
    assert "--optimize." not in str(caught.value)


def test_a_nan_after_a_resumption_goes_back_as_far_as_without_one(
    tmp_path: Path, probe: list[Probe]
) -> None:
    checkpoint = CheckpointFile(tmp_path)
    run(config(), BallTeacher(broken_calls=frozenset({34})))
    run(config(), checkpoint=checkpoint, stop_after=30)
    assert state(tmp_path)[1]["step"] == 30
    run(config(), BallTeacher(broken_calls=frozenset({4})), checkpoint=checkpoint)
    straight, _, resumed = probe
    assert straight.rolled_back_to == resumed.rolled_back_to == [SNAPSHOT_INTERVAL]
    before, after = straight.tensors(), resumed.tensors()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    # Where a snapshot is due anyway, none is kept.
    (tmp_path / "due").mkdir()
    run(config(), checkpoint=CheckpointFile(tmp_path / "due"), stop_after=SNAPSHOT_INTERVAL)
    tensors, meta = state(tmp_path / "due")
    assert tensors.keys() == before.keys()
    assert "snapshot" not in meta


def test_rollbacks_count_across_a_resumption(tmp_path: Path) -> None:
    checkpoint = CheckpointFile(tmp_path)
    run(config(), BallTeacher(broken_calls=frozenset({3})), checkpoint=checkpoint, stop_after=30)
    meta = state(tmp_path)[1]
    assert (meta["rollbacks"], meta["rate_scale"]) == (1, 0.5)
    with pytest.raises(Diverged):
        run(config(), BallTeacher(broken_calls=frozenset({2, 4, 6})), checkpoint=checkpoint)


# --- the teacher stays as it is --------------------------------------------------------------


def test_the_teacher_gets_no_gradient_and_keeps_its_hash() -> None:
    torch.manual_seed(0)
    words = ["a", "red", "ball"]
    network = make_network(len(words) + 4)
    teacher = ToyboxTeacher(
        network, make_tokenizer(words), {"kinds": {"ball": ["ball"]}, "colors": ["red"]}, "0" * 64
    )
    freeze(teacher.module)
    before = parameter_sha256(teacher.module)
    field_before = make_field(OPTIONS, 0).state_dict()
    result = run(config(steps=4, guidance_scale=4.0), teacher)
    assert parameter_sha256(teacher.module) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
    after = field_of(result).state_dict()
    assert not torch.equal(field_before["encoding.table"], after["encoding.table"])


# --- schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "low", "high"), [(0.0, 0.4, 0.98), (0.5, 0.25, 0.73), (1.0, 0.1, 0.48)]
)
def test_the_window_of_times_sinks(progress: float, low: float, high: float) -> None:
    options = OptimizeConfig(timestep_min=(0.4, 0.1), timestep_max=(0.98, 0.48))
    t = sample_timesteps(options, progress, 4000, torch.Generator().manual_seed(0))
    assert low <= t.min() < low + 0.01
    assert high - 0.01 < t.max() <= high
    assert t.mean().item() == pytest.approx((low + high) / 2, abs=0.01)


def test_the_resolution_rises_at_its_milestones() -> None:
    options = OptimizeConfig(resolutions=(16, 32, 64), resolution_milestones=(0.25, 0.5))
    sides = [resolution_at(options, p) for p in (0.0, 0.249, 0.25, 0.499, 0.5, 1.0)]
    assert sides == [16, 16, 32, 32, 64, 64]
    assert resolution_at(OptimizeConfig(resolutions=(48,), resolution_milestones=()), 1.0) == 48


def test_both_learning_rates_fall_to_their_last_share(probe: list[Probe]) -> None:
    run(config(encoding_learning_rate=0.08, mlp_learning_rate=0.02, final_learning_rate=0.01))
    rates = dict(probe[0].rates)
    assert rates[0] == pytest.approx([0.08, 0.02])
    assert rates[30] == pytest.approx([0.008, 0.002])  # the geometric middle
    assert rates[59] == pytest.approx([0.08 * 0.01 ** (59 / 60), 0.02 * 0.01 ** (59 / 60)])
    groups = [{id(p) for p in group["params"]} for group in probe[0].optimizer.param_groups]
    assert groups[0] == {id(p) for p in field_of(probe[0]).encoding.parameters()}
    assert groups[0] | groups[1] == {id(p) for p in field_of(probe[0]).parameters()}


# --- health ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opacity", "word"),
    [
        (torch.zeros(2, 16, 16), "empty"),
        (torch.full((2, 16, 16), 0.5), "fog"),
        (torch.ones(2, 16, 16), "fills its space"),
    ],
)
def test_ill_health_is_said_in_plain_words(opacity: Tensor, word: str) -> None:
    complaint = complaint_about(opacity)
    assert complaint is not None
    assert complaint.startswith(word)


@pytest.mark.parametrize("jitter", [-DISTANCE_JITTER, 0.0, DISTANCE_JITTER])
@pytest.mark.parametrize("side", [32, 64])
def test_a_full_ball_fills_its_space_and_the_largest_object_does_not(
    jitter: float, side: int
) -> None:
    poses = orbit_c2w([20.0, 140.0], [-10.0, 45.0], DISTANCE + jitter)
    origins, directions = camera_rays(poses, FOVY_DEG, side, side)
    # A ray passes the origin at the length of what of its start is across it.
    along = (origins * directions).sum(-1, keepdim=True)
    passes = (origins - along * directions).norm(dim=-1)
    full, largest = ((passes < radius).float() for radius in (FieldConfig().half_extent, 0.9))
    complaint = complaint_about(full)
    assert complaint is not None
    assert complaint.startswith("fills its space")
    assert complaint_about(largest) is None


def test_a_solid_object_with_soft_edges_is_well() -> None:
    opacity = torch.zeros(2, 32, 32)
    opacity[:, 8:24, 8:24] = 0.5
    opacity[:, 9:23, 9:23] = 1.0
    assert complaint_about(opacity) is None


def test_a_field_from_which_all_matter_vanished_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make_field

    def emptied(options: OptimizeConfig, seed: int, *which: int) -> Any:
        found = made(options, seed, *which)
        with torch.no_grad():
            found.head.bias[0] = -1e4
        return found

    monkeypatch.setattr(field_representation, "make_field", emptied)
    events: list[Event] = []
    result = run(config(steps=9), events=events)
    assert result.step == 9
    assert [e.text.split(":")[0] for e in events if isinstance(e, Health)] == ["empty"]
    assert [text.split(":")[0] for text in result.health] == ["empty"]


def test_a_complaint_that_is_no_longer_true_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    at_look = {1: "fog: a", 2: "fog: a", 5: "empty: b"}
    looks: list[None] = []

    def judge(*_: Any) -> str | None:
        looks.append(None)
        return at_look.get(len(looks))

    monkeypatch.setattr(loop_module, "HEALTH_INTERVAL", 2)
    monkeypatch.setattr(field_representation.FieldRepresentation, "complaint", judge)
    events: list[Event] = []
    result = run(config(steps=10), events=events)
    assert [e.text for e in events if isinstance(e, Health)] == ["fog: a", SOUND, "empty: b"]
    assert result.health == ["empty: b"]
    assert len(looks) == 5  # every second step: to look means to wait for the device


# --- events ----------------------------------------------------------------------------------


def test_each_step_is_told_once_with_finite_numbers() -> None:
    events: list[Event] = []
    result = run(config(), events=events)
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 61))
    for event in steps:
        assert event.steps == 60
        assert math.isfinite(event.eta_seconds)
        assert event.eta_seconds >= 0
        assert event.step_seconds > 0
        assert 0 < event.timestep < 1
        assert 0 <= event.opacity <= 1
        assert event.samples is not None
        assert event.samples > 0
    assert steps[-1].eta_seconds == 0
    assert [event.resolution for event in steps] == [12] * 30 + [16] * 30
    parts = {"render", "teacher", "backward", "update", "agreement", "rest"}
    assert set(result.seconds) == parts


def test_a_stop_is_obeyed_after_the_step_and_the_state_saved(tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(config(), checkpoint=CheckpointFile(tmp_path), events=events, stop_after=7)
    assert result.stopped
    assert result.step == len(events) == 7
    tensors, meta = state(tmp_path)
    assert meta["step"] == 7
    for name, tensor in field_of(result).state_dict().items():
        assert torch.equal(tensors[f"field.{name}"], tensor)


def test_a_stop_at_the_last_step_is_the_end_of_the_run(tmp_path: Path) -> None:
    result = run(config(steps=5), checkpoint=CheckpointFile(tmp_path), stop_after=5)
    assert not result.stopped
    assert state(tmp_path)[1]["step"] == 5


def test_checkpoints_come_when_they_are_due(tmp_path: Path) -> None:
    saved: list[int] = []
    checkpoint = SimpleNamespace(
        load=lambda: None, save=lambda tensors, meta: saved.append(meta["step"])
    )
    run(
        replace(config(steps=6), checkpoint_seconds=1e-9),
        checkpoint=cast(CheckpointFile, checkpoint),
    )
    assert saved == [1, 2, 3, 4, 5, 6]


def test_the_clock_counts_all_time_once() -> None:
    ticks: Callable[[], float] = iter([0.0, 1.0, 3.0, 7.0]).__next__
    clock = StepClock(now=ticks)
    for part in ("rest", "render", "rest"):
        clock.lap(part)
    assert clock.seconds == {"rest": 5.0, "render": 2.0}


# --- what the options do ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [{"entropy_weight": 5.0}, {"orientation_weight": 5.0}, {"normal_smoothness_weight": 5.0}],
    ids=lambda weights: next(iter(weights)),
)
def test_each_regulariser_lowers_what_it_penalises(weights: dict[str, float]) -> None:
    (name,) = weights
    off = {
        "entropy_weight": 0.0,
        "orientation_weight": 0.0,
        "normal_smoothness_weight": 0.0,
        "steps": 25,
    }

    def penalty(**options: Any) -> float:
        result = run(config(**{**off, **options}))
        g = torch.Generator().manual_seed(0)
        views = ring(4, 20.0)
        c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance)
        rays_o, rays_d = camera_rays(c2w, FOVY_DEG, 16, 16)
        rendered = render(
            field_of(result), None, rays_o, rays_d, RenderConfig(step_size=0.08), with_normals=True
        )
        only = replace(OPTIONS, **{**off, name: 1.0})
        return regularization(only, field_of(result), rendered, g).item()

    assert penalty(**weights) < 0.9 * penalty()


def iou(result: Optimized | None = None) -> float:
    """The field's silhouettes against the ball's, from sides that no step saw exactly."""
    found = make_field(OPTIONS, 0) if result is None else field_of(result)
    views = ring(6, 20.0)
    c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance)
    rays_o, rays_d = camera_rays(c2w, FOVY_DEG, SIZE, SIZE)
    with torch.no_grad():
        opacity = render(found, None, rays_o, rays_d, RenderConfig(step_size=0.05)).opacity
    seen, mask = opacity > 0.5, picture(views.camera)[1]
    return float((seen & mask).sum() / (seen | mask).sum())


def test_an_exact_teacher_leads_to_its_object() -> None:
    at_start = iou()
    result = run(config(steps=80))
    assert at_start < 0.5
    assert iou(result) > 0.85
    assert result.health == []
