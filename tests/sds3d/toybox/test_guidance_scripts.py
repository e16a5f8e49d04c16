"""The scripts around the guided teacher: what the student is shown, and what is compared."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from sds3d.errors import BadInput

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up while they are made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def distil() -> Iterator[ModuleType]:
    yield load("distill_toybox_guidance")
    del sys.modules["distill_toybox_guidance"]


@pytest.fixture(scope="module")
def compare() -> Iterator[ModuleType]:
    yield load("compare_teachers")
    del sys.modules["compare_teachers"]


class Reader:
    """Encodes a prompt as its number of words."""

    def encode(self, prompts: list[str] | str) -> Conditioning:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        counts = [float(len(prompt.split())) for prompt in prompts]
        return Conditioning(text=torch.tensor(counts)[:, None, None])


def test_renders_come_with_their_captions_and_cameras(distil: ModuleType, tmp_path: Path) -> None:
    config = distil.GuidanceConfig(cache=tmp_path, cache_images=8, pictures=8)
    shown = distil.rendered(Reader(), config)
    assert shown.rgba.shape == (8, 64, 64, 4)
    assert shown.rgba.dtype == torch.uint8
    alpha = shown.rgba[..., 3].float() / 255
    # A thing stands in the middle and leaves the corners clear.
    assert bool((alpha[:, :2, :2] == 0).all())
    assert bool((alpha.amax((1, 2)) > 0.99).all())
    # Colours are multiplied by the opacity, as `Pictures` wants them.
    assert bool((shown.rgba[..., :3] <= shown.rgba[..., 3:].int() + 2).all())
    assert bool((shown.text[:, 0, 0] >= 2).all())
    assert shown.empty.item() == 0
    # Four views of a scene stand on four sides.
    assert len(set(shown.camera[:4, 0].tolist())) == 4
    batch = shown.draw(3, torch.Generator().manual_seed(0))
    assert batch.x0.shape == (3, 3, 64, 64)
    assert float(batch.x0.abs().max()) <= 1 + 1e-2


def test_the_model_card_says_what_was_measured(distil: ModuleType) -> None:
    config = distil.GuidanceConfig(steps=123, batch=7)
    text = distil.model_card(config, {"training_seconds": 180.0, "missed_at_4": 0.256, "x": 1.0})
    assert "123 steps of 7 pictures in 3 minutes" in text
    assert "misses 26 % at scale 4." in text
    assert "1 to 7.5" in text
    assert "{" not in text


def report(folder: Path, seed: int, retrieved: list[bool], iou: float) -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        {"prompt": f"thing {i}", "retrieved": value, "azimuth": None, "silhouette_iou": iou}
        for i, value in enumerate(retrieved)
    ]
    rows[0]["azimuth"] = 0.5
    document = {"summary": {"seed": seed}, "rows": rows}
    (folder / f"evaluation-balanced-{seed}-{len(rows)}.json").write_text(json.dumps(document))


def test_differences_are_held_against_the_losses_to_exclude(
    compare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for seed in (0, 1, 2):
        report(tmp_path / "two", seed, [True] * 10, 0.8)
        report(tmp_path / "one", seed, [True] * 5 + [False] * 5, 0.79)
    words = ["--repeats", "0", "--before-reports", str(tmp_path / "two"), "--after-reports"]
    monkeypatch.setattr(sys, "argv", ["compare_teachers", *words, str(tmp_path / "one"), "--json"])
    assert compare.main() == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert found["r_precision"]["difference"] == -0.5
    assert not found["r_precision"]["excluded"]
    assert found["r_precision"]["pairs"] == 30
    # All pairs lose 0.01, less than the 0.02 that must be excluded.
    assert found["silhouette_iou"]["high"] == pytest.approx(-0.01)
    assert found["silhouette_iou"]["excluded"]
    assert found["azimuth_accuracy"]["pairs"] == 3
    text = compare.table({"differences": found})
    assert "a loss of 0.03 is NOT excluded" in text
    assert "a loss of 0.02 is excluded" in text


class Slow:
    """A teacher that counts its calls; the clock below moves by one with each."""

    image_size = 8
    schedule = FlowSchedule()

    def __init__(self, clock: SimpleNamespace, **attributes: Any) -> None:
        self.clock = clock
        vars(self).update(attributes)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.ones(1, 1, 1)
        embeds = hasattr(self, "guidance_scales")
        return Conditioning(text=text, uncond=None if embeds else Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.clock.now += 1.0
        return Prediction.from_x0(torch.zeros_like(x_t), x_t, t, self.schedule)


def test_a_step_of_one_pass_takes_half_of_one_of_two(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    two, one = Slow(clock), Slow(clock, guidance_scales=(1.0, 7.5))
    made = {"toybox": two, "toybox-guided": one}
    monkeypatch.setattr(compare, "load_teacher", lambda name, _: made[name])
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock.now)
    config = compare.CompareConfig(repeats=3, device="cpu")
    found = compare.seconds_per_step(config)
    assert (found["before_seconds"], found["after_seconds"], found["ratio"]) == (2.0, 1.0, 0.5)
    assert "0.50 of it" in compare.table({"step": found})


def test_reports_of_one_side_alone_are_refused(compare: ModuleType) -> None:
    with pytest.raises(BadInput, match="go together"):
        compare.CompareConfig(before_reports=(Path("a"),))
