"""An image in the place of the field: every method finds what its teacher knows; its files."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule, per_sample
from sds3d.config import GenerateConfig
from sds3d.config_json import from_dict, run_key, to_dict
from sds3d.errors import ConfigError, Interrupted
from sds3d.events import Event, Step
from sds3d.generate import export_run, generate, resume
from sds3d.image_representation import FRAMES
from sds3d.jobs.limits import LimitExceeded, LimitsConfig, check_config
from sds3d.optimize import Optimization, StepClock, optimize
from sds3d.optimize_config import ImageOptions, MethodName, OptimizeConfig
from sds3d.runs import CheckpointFile
from sds3d.write_files import write_files

SIZE = 8
COLOUR = (0.6, -0.4, 0.2)
METHODS = get_args(MethodName)
PROMPT = "a mushroom"


@dataclass
class OneColourTeacher:
    """The prompt is one colour whatever the noise; any other text is whatever it is shown."""

    image_size: int = SIZE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    weights_sha256: str = "c" * 64
    cameras: list[Tensor] = field(default_factory=list)

    def check_prompt(self, prompt: str) -> Any:
        return SimpleNamespace(warning=None)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        assert isinstance(prompts, str)
        text = torch.full((1, 1, 1), float(prompts == PROMPT))
        return Conditioning(text=text, uncond=Conditioning(text=torch.zeros(1, 1, 1)))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        assert cond.text is not None
        if cond.camera is not None:
            self.cameras.append(cond.camera)
        colour = torch.tensor(COLOUR)[:, None, None].expand_as(x_t)
        asked = cond.text.reshape(-1, 1, 1, 1) > 0
        # eps = 0: all of x_t is image.
        x0 = torch.where(asked, colour, x_t / per_sample(1 - t, x_t))
        return Prediction.from_x0(x0, x_t, t, self.schedule)

    def adapt(self, rank: int, generator: torch.Generator) -> "ShiftedTwin":
        return ShiftedTwin(self)


class ShiftedTwin:
    """Learns a colour to add to what the teacher says."""

    def __init__(self, teacher: OneColourTeacher) -> None:
        self.teacher, self.schedule = teacher, teacher.schedule
        self.trainable = {"shift": nn.Parameter(torch.zeros(1, 3, 1, 1))}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        said = self.teacher(x_t, t, cond)
        return said.with_value(said.value + self.trainable["shift"])


def config(out: Path = Path("outputs"), **changed: Any) -> GenerateConfig:
    image = ImageOptions(image_learning_rate=0.05, **changed.pop("image", {}))
    if changed.get("method") == "reconstruction":
        changed = {"guidance_rescale": 0.5, **changed}
    options = OptimizeConfig(
        target="image",
        image=image,
        **{
            "steps": 80,
            "guidance_scale": 2.0,
            "timestep_max": (0.2, 0.2),
            "timestep_min": (0.1, 0.1),
            "lora_learning_rate": 0.01,
            **changed,
        },
    )
    return GenerateConfig(
        prompt=PROMPT, device="cpu", checkpoint_seconds=1e6, out=out, optimize=options
    )


def optimized_pixels(given: GenerateConfig, teacher: OneColourTeacher | None = None) -> Tensor:
    done = optimize(
        given,
        teacher or OneColourTeacher(),
        checkpoint=None,
        on_event=lambda _: None,
        should_stop=lambda: False,
    )
    return done.particles[0].state_dict()["pixels"][0]


# --- methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leads_to_the_colour_that_the_teacher_knows(method: str) -> None:
    wanted = (torch.tensor(COLOUR) + 1) / 2
    found = optimized_pixels(config(method=method))
    mean = found.mean(dim=(1, 2))
    torch.testing.assert_close(mean, wanted, atol=0.05, rtol=0)
    # CDS keeps its one noise and with it a grain: (sigma/alpha) eps*, halved in [0, 1].
    assert found.std(dim=(1, 2)).max() < (0.15 if method == "cds" else 0.06)


def test_vsd_at_scale_one_waits_for_what_it_learns() -> None:
    loop = Optimization(config(method="vsd", guidance_scale=1.0), OneColourTeacher())
    before = loop.particles[0].state_dict()["pixels"].clone()
    loop.advance(StepClock())
    # The twin still said what the teacher says, so there was nothing to follow.
    assert torch.equal(loop.particles[0].state_dict()["pixels"], before)
    for _ in range(5):
        loop.advance(StepClock())
    assert not torch.equal(loop.particles[0].state_dict()["pixels"], before)


def test_a_coarse_image_is_shown_enlarged() -> None:
    teacher = OneColourTeacher()
    found = optimized_pixels(config(image={"image_resolution": 4}), teacher)
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(
        found.mean(dim=(1, 2)), (torch.tensor(COLOUR) + 1) / 2, atol=0.05, rtol=0
    )


def test_the_teacher_is_told_the_one_camera() -> None:
    teacher = OneColourTeacher()
    given = config(steps=3, image={"azimuth_deg": 120.0, "elevation_deg": -5.0}, views_per_step=3)
    optimized_pixels(given, teacher)
    assert teacher.cameras
    for camera in teacher.cameras:
        assert torch.equal(camera, torch.tensor([[120.0, -5.0]]).expand(len(camera), 2))


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def parts(fakes: SimpleNamespace) -> Any:
    return fakes.make_parts(loop=optimize, teacher=OneColourTeacher(), write_files=write_files)


def stop_at(step: int) -> tuple[Callable[[Event], None], Callable[[], bool]]:
    seen: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            seen.append(event.step)

    return listen, lambda: bool(seen) and seen[-1] >= step


def test_the_run_s_folder_holds_the_image_and_how_it_came_about(parts: Any, tmp_path: Path) -> None:
    done = generate(config(tmp_path), parts=parts)
    assert set(done.result["files"]) == {"config.json", "image.png", "progress.png"}
    with Image.open(done.folder / "image.png") as image:
        # Eight pixels are enlarged to be seen.
        assert image.size == (128, 128)
        colour = np.asarray(image).reshape(-1, 3).mean(axis=0) / 127.5 - 1
    assert colour == pytest.approx(COLOUR, abs=0.05)
    with Image.open(done.folder / "progress.png") as strip:
        pixels = np.asarray(strip).astype(float)
    assert pixels.shape == (128, FRAMES * 132 - 4, 3)
    frames = [pixels[:, 132 * k : 132 * k + 128].mean(axis=(0, 1)) for k in range(FRAMES)]
    distance = [float(np.abs(frame / 127.5 - 1 - COLOUR).max()) for frame in frames]
    assert distance[0] > 2 * distance[-1]
    assert distance[-1] < 0.1
    result = json.loads((done.folder / "result.json").read_text())
    assert result["image"] == {"side": SIZE, "clipped": 0.0}
    assert result["config"]["optimize"]["target"] == "image"
    assert result["steps"] == 80
    assert "mesh" not in result
    # The same request again is the finished run, and its files can be made again.
    events: list[Event] = []
    again = generate(config(tmp_path), parts=parts, on_event=events.append)
    assert again.result == done.result
    assert not [event for event in events if isinstance(event, Step)]
    assert export_run(done.folder, parts=parts).result["files"] == done.result["files"]


def test_an_interrupted_image_ends_with_the_same_bytes(parts: Any, tmp_path: Path) -> None:
    given = config(tmp_path / "halves", method="vsd", particles=2)
    listen, should_stop = stop_at(33)
    with pytest.raises(Interrupted) as caught:
        generate(given, parts=parts, on_event=listen, should_stop=should_stop)
    halves = resume(caught.value.folder, parts=parts)
    whole = generate(replace(given, out=tmp_path / "whole"), parts=parts)
    names = {"image.png", "progress.png", "particle-2/image.png", "particle-2/progress.png"}
    assert set(whole.result["files"]) == {"config.json", *names}
    assert {name: halves.result["files"][name] for name in names} == {
        name: whole.result["files"][name] for name in names
    }
    assert whole.result["files"]["image.png"] != whole.result["files"]["particle-2/image.png"]
    (second,) = whole.result["particles"]
    assert second["folder"] == "particle-2"
    # Another start with fewer particles leaves no file of this one.
    first = CheckpointFile(whole.folder).load()
    assert first is not None
    assert {"particle2.pixels", "fake.weights.shift"} <= first[0].keys()


def test_what_an_image_is_not_for_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="--target is image"):
        check_config(config(), LimitsConfig())
    wrong: list[dict[str, Any]] = [
        {"image_resolution": 3},
        {"image_learning_rate": -1.0},
        {"azimuth_deg": 400.0},
        {"elevation_deg": 91.0},
    ]
    for changed in wrong:
        (name,) = changed
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(ConfigError, match=f"^{flag} is "):
            ImageOptions(**changed)
    document = to_dict(config())
    document["optimize"]["target"] = "picture"
    with pytest.raises(ConfigError, match="target is 'picture': give one of mesh, image"):
        from_dict(document)


def test_runs_of_meshes_keep_their_names() -> None:
    """What is new says nothing of a run that does not use it."""
    given = GenerateConfig(prompt=PROMPT, device="cpu")
    assert run_key(given, "a") != run_key(config(), "a")
    other = replace(given, optimize=replace(given.optimize, image=ImageOptions(azimuth_deg=90.0)))
    assert run_key(other, "a") != run_key(given, "a")
    document = to_dict(given)
    for name in ("target", "particles", "lora_rank", "lora_learning_rate", "image"):
        del document["optimize"][name]
    assert from_dict(document) == given
