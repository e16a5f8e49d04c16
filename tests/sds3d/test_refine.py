"""The second stage moves a mesh to what it is shown, and a run goes on in it to the same bits."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.teacher import set_aside
from sds3d import teachers
from sds3d.config import GenerateConfig, MeshConfig
from sds3d.errors import ConfigError, EmptyField, Interrupted, TeacherError
from sds3d.events import Event, Stage, Step
from sds3d.field_representation import FieldRepresentation
from sds3d.generate import Generated, Parts, export_run, generate, resume, with_loaded
from sds3d.optimize import Optimization, Optimized, StepClock, optimize, sample_timesteps
from sds3d.optimize_config import OptimizeConfig, RefineOptions
from sds3d.refine import check_second_stage, second_stage
from sds3d.surface_representation import SurfaceRepresentation
from sds3d.views import DISTANCE, FOVY_DEG, ring

SIZE = 24
RADIUS = 0.62
COLOR = (0.9, 0.2, 0.1)

REFINE = RefineOptions(
    refine_steps=3,
    refine_resolution=16,
    tetrahedra_resolution=14,
    refine_fovy_range_deg=(40.0, 40.0),
)


@dataclass
class Painter:
    """Sees one thing whatever the noise: a disc of one colour, before the noisy image's ground."""

    weights_sha256: str = "b" * 64
    image_size: int = SIZE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    calls: int = 0

    def check_prompt(self, prompt: str) -> SimpleNamespace:
        return SimpleNamespace(warning=None)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.calls += 1
        disc = target_disc(x_t.shape[-1])
        ground = x_t[:, :, ~disc].mean(-1) / (1 - t[:, None])
        color = 2 * torch.tensor(COLOR) - 1
        x0 = torch.where(disc, color[None, :, None, None], ground[:, :, None, None])
        return Prediction.from_x0(x0, x_t, t, self.schedule)


def target_disc(side: int) -> Tensor:
    """[S, S] bool: what a ball of RADIUS covers."""
    edge = math.tan(math.asin(RADIUS / DISTANCE)) / math.tan(math.radians(FOVY_DEG / 2))
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    return axis[:, None].square() + axis.square() < edge**2


def config(fakes: Any, out: Path = Path("outputs"), **refine: Any) -> GenerateConfig:
    options = replace(fakes.tiny_options, steps=2, refine=replace(REFINE, **refine))
    mesh = MeshConfig(mesh_resolution=24, max_faces=600, texture_size=64, formats=("glb",))
    return GenerateConfig(
        prompt="a ball", device="cpu", out=out, checkpoint_seconds=1e-6, optimize=options, mesh=mesh
    )


def refined(
    given: GenerateConfig, teacher: Painter, steps: int
) -> tuple[Optimization, list[float]]:
    """The second stage by itself on a field that nobody trained, and its IoU with the disc."""
    coarse = FieldRepresentation(given.optimize, given.seed, 0, "cpu")
    stage = second_stage(given)
    loop = Optimization(stage, teacher, [SurfaceRepresentation(coarse, stage)])
    ious = []
    for _ in range(steps):
        report = loop.advance(StepClock())
        assert report.finite
        white, black = (
            loop.particles[0].pictures(ring(3, 10.0), SIZE, background) for background in (1.0, 0.0)
        )
        seen, disc = (white - black).mean(1) < 0.5, target_disc(SIZE)
        ious.append(float((seen & disc).sum() / (seen | disc).sum()))
    return loop, ious


def test_the_mesh_takes_the_shape_and_the_colour_that_it_is_shown(fakes: Any) -> None:
    """By pictures alone, from a smaller grey ball; without the rate of its surface it stays."""
    wish = {
        "surface_learning_rate": 0.3,
        "texture_learning_rate": 0.05,
        "refine_resolution": SIZE,
        "roughness_weight": 0.1,
    }
    given = config(fakes, refine_steps=60, refine_views_per_step=3, **wish)
    given = replace(given, optimize=replace(given.optimize, final_learning_rate=1.0))
    loop, ious = refined(given, Painter(), 60)
    assert ious[0] < 0.6
    assert ious[-1] > 0.95
    picture = loop.particles[0].pictures(ring(1, 10.0), SIZE, 0.0)[0, :, SIZE // 2, SIZE // 2]
    assert picture[0] > 0.8
    assert picture[1:].max() < 0.35
    still = config(fakes, refine_steps=3, **{**wish, "surface_learning_rate": 0.0})
    assert len(set(refined(still, Painter(), 3)[1])) == 1


def test_roughness_and_rates_and_zoom_are_read(fakes: Any) -> None:
    """Each option of the stage changes what two steps lead to."""

    def state(**wish: Any) -> Tensor:
        loop, _ = refined(config(fakes, **wish), Painter(), 2)
        return torch.cat([value.reshape(-1).float() for value in loop.tensors().values()])

    before = state()
    for name, value in {
        "roughness_weight": 50.0,
        "texture_learning_rate": 0.1,
        "refine_fovy_range_deg": (30.0, 35.0),
        "refine_resolution": 24,
    }.items():
        assert not torch.equal(state(**{name: value}), before), name
    assert not torch.equal(state(refine_views_per_step=2), before)
    assert len(state(tetrahedra_resolution=12)) != len(before)


def test_the_second_stage_has_times_guidance_and_views_of_its_own(fakes: Any) -> None:
    given = config(fakes, refine_timesteps=(0.6, 0.9), refine_views_per_step=4, refine_teacher="x")
    stage = second_stage(given)
    assert (stage.teacher, stage.optimize.steps, stage.optimize.views_per_step) == ("x", 3, 4)
    assert stage.optimize.guidance_scale == given.optimize.guidance_scale
    times = sample_timesteps(stage.optimize, 0.7, 500, torch.Generator().manual_seed(0))
    assert 0.6 <= times.min() < 0.62
    assert 0.88 < times.max() <= 0.9
    guided = second_stage(config(fakes, refine_guidance_scale=30.0))
    assert (guided.teacher, guided.optimize.guidance_scale) == ("toybox", 30.0)


def test_an_empty_field_has_nothing_to_refine(fakes: Any) -> None:
    given = config(fakes)
    coarse = FieldRepresentation(given.optimize, 0, 0, "cpu")
    with torch.no_grad():
        coarse.field.head.bias[0] = -50.0
    with pytest.raises(EmptyField, match="no surface to refine"):
        SurfaceRepresentation(coarse, given)


# --- the run ---------------------------------------------------------------------------------


def digest_files(
    optimized: Optimized, config: GenerateConfig, folder: Path, on_event: Any
) -> dict[str, Any]:
    """Instead of a mesh, every number of what was made."""
    particle = optimized.particles[0]
    numbers = b"".join(v.numpy().tobytes() for v in particle.state_dict().values())
    (folder / "state.bin").write_bytes(type(particle).__name__.encode() + numbers)
    return {"mesh": {}, "iso_iou": None, "seconds": {"mesh": 0.0, "export": 0.0}}


def parts(**more: Any) -> Parts:
    found: dict[str, Any] = {"load_teacher": lambda _name, _device: Painter()}
    return Parts(**{**found, "optimize": optimize, "write_files": digest_files, **more})


def steps_of(heard: list[Event]) -> list[tuple[int, int]]:
    return [(event.step, event.steps) for event in heard if isinstance(event, Step)]


def state_of(made: Generated) -> bytes:
    return (made.folder / "state.bin").read_bytes()


def test_both_stages_are_one_run(fakes: Any, tmp_path: Path) -> None:
    heard: list[Event] = []
    made = generate(config(fakes, tmp_path), on_event=heard.append, parts=parts())
    stages = [event.name for event in heard if isinstance(event, Stage)]
    assert stages == ["teacher", "optimize", "refine"]
    assert steps_of(heard) == [(step, 5) for step in range(1, 6)]
    result = made.result
    assert result["steps"] == 5
    assert set(result["seconds"]) == {"teacher", "optimize", "refine", "mesh", "export", "total"}
    held = {"weights_sha256": "b" * 64, "image_size": SIZE}
    assert result["refine"]["teacher"] == {"name": "toybox", **held}
    assert result["refine"]["steps"] == 3
    assert {"render", "teacher", "backward"} <= set(result["refine"]["seconds"])
    assert state_of(made).startswith(b"SurfaceRepresentation")
    # Made once, and exported anew from the second stage's checkpoint.
    again: list[Event] = []
    assert generate(config(fakes, tmp_path), parts=parts()).result == result
    exported = export_run(made.folder, max_faces=500, on_event=again.append, parts=parts())
    assert steps_of(again) == []
    assert state_of(exported) == state_of(made)
    assert exported.result["refine"] == result["refine"]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_run_that_was_interrupted_in_either_stage_ends_with_the_same_bits(
    stop_after: int, fakes: Any, tmp_path: Path
) -> None:
    whole = generate(config(fakes, tmp_path / "whole"), parts=parts())
    heard: list[Event] = []
    with pytest.raises(Interrupted) as stopped:
        generate(
            config(fakes, tmp_path / "halves"),
            on_event=heard.append,
            should_stop=lambda: len(steps_of(heard)) >= stop_after,
            parts=parts(),
        )
    rest: list[Event] = []
    made = resume(stopped.value.folder, on_event=rest.append, parts=parts())
    assert steps_of(heard) + steps_of(rest) == [(step, 5) for step in range(1, 6)]
    assert state_of(made) == state_of(whole)
    assert made.result["steps"] == 5


@pytest.mark.parametrize(("end_after", "kind"), [(1, b"FieldRep"), (4, b"SurfaceRep")])
def test_a_run_that_was_ended_is_what_it_was_in_that_stage(
    end_after: int, kind: bytes, fakes: Any, tmp_path: Path
) -> None:
    heard: list[Event] = []
    made = generate(
        config(fakes, tmp_path),
        on_event=heard.append,
        should_finish=lambda: len(steps_of(heard)) >= end_after,
        parts=parts(),
    )
    assert made.result["steps"] == end_after
    assert state_of(made).startswith(kind)
    exported = export_run(made.folder, max_faces=500, parts=parts())
    assert state_of(exported) == state_of(made)
    assert exported.result["steps"] == end_after
    finished = generate(config(fakes, tmp_path), parts=parts())
    assert finished.result["steps"] == 5


def test_extra_steps_belong_to_the_last_stage(fakes: Any, tmp_path: Path) -> None:
    given = config(fakes, tmp_path)
    given = replace(given, optimize=replace(given.optimize, extra_steps=2))
    made = generate(given, parts=parts())
    assert (made.result["steps"], made.result["refine"]["steps"]) == (7, 5)


def test_starting_anew_forgets_the_second_stage(fakes: Any, tmp_path: Path) -> None:
    first = generate(config(fakes, tmp_path), parts=parts())
    before = state_of(first)
    heard: list[Event] = []
    again = generate(config(fakes, tmp_path), on_event=heard.append, overwrite=True, parts=parts())
    assert len(steps_of(heard)) == 5
    assert state_of(again) == before


def test_another_second_teacher_is_noticed(fakes: Any, tmp_path: Path) -> None:
    made = generate(config(fakes, tmp_path), parts=parts())
    note = made.folder / "refine" / "teacher.json"
    note.write_text(json.dumps({"name": "toybox", "weights_sha256": "c" * 64}))
    with pytest.raises(TeacherError, match="second stage"):
        export_run(made.folder, max_faces=400, parts=parts())
    held = {"name": "toybox", "weights_sha256": "b" * 64, "image_size": 2 * SIZE}
    note.write_text(json.dumps(held))
    with pytest.raises(TeacherError, match=f"image_size = {2 * SIZE} under"):
        export_run(made.folder, max_faces=400, parts=parts())


def test_a_second_teacher_that_is_not_here_is_said_before_the_first_is_loaded(
    fakes: Any, tmp_path: Path
) -> None:
    def unreachable(_name: str, _device: str) -> Painter:
        raise AssertionError("the first stage must not begin")

    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "IFSuperResolutionPipeline"}')
    for name, text in (
        ("sdxl", "hf download"),
        ("nowhere", "give toybox"),
        (str(other), "for --refine-teacher: .* holds a IFSuperResolutionPipeline"),
    ):
        given = config(fakes, tmp_path, refine_teacher=name)
        with pytest.raises(TeacherError, match=text):
            generate(given, parts=parts(load_teacher=unreachable))


def test_a_second_teacher_that_cannot_serve_is_refused_before_the_first_is_loaded(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its outline: four views at once, or guidance that is in the weights."""

    def unreachable(_name: str, _device: str) -> Painter:
        raise AssertionError("the first stage must not begin")

    @dataclass
    class FourViews(Painter):
        views_per_object: int = 4

    @dataclass
    class Guided(Painter):
        guidance_scales: tuple[float, float] = (1.0, 7.5)

    outline: Any = FourViews()
    monkeypatch.setattr(teachers, "outline_teacher", lambda *_: outline)
    monkeypatch.setattr("sds3d.generate.check_refine_teacher", lambda _: None)
    given = config(fakes, tmp_path, refine_teacher="x")

    def refusal(given: GenerateConfig) -> str:
        with pytest.raises(ConfigError) as caught:
            generate(given, parts=parts(load_teacher=unreachable))
        assert "\n" not in str(caught.value)
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]
        return str(caught.value)

    text = "for --refine-teacher x: --refine-views-per-step is 1: this teacher judges 4 views"
    assert refusal(given).startswith(text)
    check_second_stage(config(fakes, tmp_path, refine_teacher="x", refine_views_per_step=8))
    outline = Guided()
    check_second_stage(given)
    for changed, said in (
        ({"method": "csd"}, "--method is csd: x gives the guided answer alone"),
        ({"guidance_scale": 50.0}, "--refine-guidance-scale is 50: x was distilled for 1 to 7.5"),
    ):
        other = replace(given, optimize=replace(given.optimize, **changed))
        assert refusal(other).startswith(f"for --refine-teacher x: {said}")
    # Without a second stage, or with the first one's teacher, there is nothing to look at.
    outline = None
    for same in ({"refine_teacher": ""}, {"refine_teacher": "toybox"}, {"refine_steps": 0}):
        assert check_second_stage(config(fakes, tmp_path, **same)) is None


def test_the_second_stage_of_a_loaded_teacher_still_reads_its_own(tmp_path: Path) -> None:
    first: Any = Painter()
    second = Painter()
    asked: list[tuple[str, str]] = []

    def load(name: str, device: str) -> Painter:
        asked.append((name, device))
        return second

    held = with_loaded(parts(load_teacher=load), "toybox", "cpu", first)
    assert held.load_teacher("toybox", "cpu") is first
    assert asked == []
    assert held.load_teacher("sd21", "cpu") is second
    assert asked == [("sd21", "cpu")]


def test_perp_neg_of_the_second_stage_can_be_left_out(fakes: Any) -> None:
    for first, second, expected in ((True, True, True), (True, False, False), (False, True, False)):
        given = config(fakes, refine_perp_neg=second)
        options = replace(given.optimize, perp_neg=first, view_prompts="interpolated")
        assert second_stage(replace(given, optimize=options)).optimize.perp_neg is expected


def test_the_options_are_checked() -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"refine_steps": -1}, "--refine-steps"),
        ({"refine_timesteps": (0.5, 0.02)}, "--refine-timesteps"),
        ({"refine_fovy_range_deg": (50.0, 30.0)}, "--refine-fovy-range-deg"),
        ({"tetrahedra_resolution": 4}, "--tetrahedra-resolution"),
    ]
    for changed, flag in faults:
        with pytest.raises(ConfigError, match=rf"^{flag} is .*: give"):
            RefineOptions(**changed)
    with pytest.raises(ConfigError, match="--latent"):
        OptimizeConfig(latent=True, refine=RefineOptions(refine_steps=1))


def test_a_teacher_set_aside_leaves_its_device_and_comes_back() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places: list[str] = []

        def to(self, *args: Any, **_: Any) -> "Recorder":
            self.places.append(str(args[0]))
            return self

    module = Recorder()
    with set_aside(SimpleNamespace(device=torch.device("cuda:0"), module=module)):
        assert module.places == ["cpu"]
    assert module.places == ["cpu", "cuda:0"]
    with set_aside(SimpleNamespace(device=torch.device("cpu"), module=module)):
        pass
    with set_aside(Painter()):
        pass
    assert len(module.places) == 2
