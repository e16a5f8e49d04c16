"""The training script at a tiny size: batches and steps are functions of seed and step alone."""

import dataclasses
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.teachers.toybox import ToyboxTeacher
from core.teachers.toybox_network import MAX_TOKENS, make_network, make_tokenizer
from sds3d.toybox.captions import vocabulary
from toybox_views import ImageCache

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "train_toybox_teacher.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("train_toybox_teacher", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """The training answers signals; the tests' own answers come back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _config(script: ModuleType, out: Path, **options: Any) -> Any:
    tiny: dict[str, Any] = {
        "steps": 4,
        "decay_steps": 2,
        "warmup_steps": 2,
        "batch": 2,
        "images": 16,
        "images_at_start": 8,
        "images_per_step": 2,
        "device": "cpu",
        "sheet_every": 1000,
        "reading_steps": 2,
        "reading_batch": 4,
    }
    return dataclasses.replace(script.TrainConfig(), out=out, **(tiny | options))


class Killed(Exception):
    """The process dies here."""


def test_a_training_that_is_killed_goes_on_to_the_same_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = _config(script, tmp_path / "straight")
    assert script.train(straight) == 0

    # Saved after every step, killed in the third before it is saved.
    interrupted = _config(script, tmp_path / "interrupted", save_every_s=0.0)
    update = script.State.update_ema

    def die(self: Any, decay: float) -> None:
        update(self, decay)
        if self.step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(script.State, "update_ema", die)
        with pytest.raises(Killed):
            script.train(interrupted)
    # Then stopped by its time limit after one step, and finished.
    assert script.train(dataclasses.replace(interrupted, minutes=1e-9)) == 0
    assert script.train(interrupted) == 0

    one, other = (
        load_file(tmp_path / name / "state.safetensors") for name in ("straight", "interrupted")
    )
    assert one.keys() == other.keys()
    assert any(name.startswith("adam.exp_avg_sq.") for name in one)
    assert any(name.startswith("ema.") for name in one)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
    trained = [
        n
        for n in one
        if n.startswith("model.") and not torch.equal(one[n], one.get("ema" + n[5:], one[n]))
    ]
    assert trained, "nothing was learned"

    # What it leaves is a teacher that loads by itself and holds the average, in half precision.
    teacher = ToyboxTeacher.load(tmp_path / "interrupted" / "teacher", dtype=torch.float32)
    for name, parameter in teacher.network.named_parameters():
        # The text encoder is frozen after its own lessons and has no average.
        kept = one[f"model.{name}" if name.startswith("text_encoder.") else f"ema.{name}"]
        torch.testing.assert_close(parameter, kept.half().float(), rtol=0, atol=0)
    assert teacher.check_prompt("a red mushroom").subjects == ("mushroom",)
    assert teacher.takes_camera

    # One that never saw a camera says so.
    words = dataclasses.replace(straight, camera_dropout=1.0)
    assert script.train(words) == 0
    assert not ToyboxTeacher.load(words.out / "teacher").takes_camera


def test_adams_moments_and_step_come_back_to_where_the_weights_are(
    script: ModuleType, tmp_path: Path
) -> None:
    config = _config(script, tmp_path)

    def state() -> Any:
        return script.State(make_network(8), config)

    saved = state()
    for parameter in saved.trained.values():
        parameter.grad = torch.ones_like(parameter)
    saved.optimizer.step()
    saved.step = 1
    saved.save(tmp_path / "state.safetensors")
    # "meta" stands for any device that files are not read to.
    other = state()
    other.network.to("meta")
    other.trained = dict(other.network.named_parameters())
    other.ema = {name: value.to("meta") for name, value in other.ema.items()}
    other.optimizer.state.clear()
    other.load(tmp_path / "state.safetensors")
    assert other.step == 1
    assert len(other.optimizer.state) == len(saved.trained)
    devices = {v.device.type for kept in other.optimizer.state.values() for v in kept.values()}
    assert devices == {"meta"}
    # And where they stay, they are the ones that were saved.
    again = state()
    again.load(tmp_path / "state.safetensors")
    for name in again.trained:
        kept, before = (s.optimizer.state[s.trained[name]] for s in (again, saved))
        assert kept.keys() == before.keys()
        assert all(torch.equal(kept[key], before[key]) for key in kept), name
        assert kept["step"] == 1


def test_a_batch_depends_on_seed_and_step_alone(script: ModuleType, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(vocabulary())
    config = _config(script, tmp_path, batch=6)
    found = []
    for folder, threads in (("one", 1), ("two", 2)):
        cache = ImageCache(tmp_path / folder, config.images, config.seed, threads)
        # In another order the second time.
        steps = (0, 3) if folder == "one" else (3, 0)
        batches = {step: script.make_batch(config, cache, tokenizer, step) for step in steps}
        found.append(batches)
        cache.close()
    for step in (0, 3):
        for name in ("x0", "tokens", "camera", "t", "eps"):
            one, two = (getattr(batches[step], name) for batches in found)
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(found[0][0].eps, found[0][3].eps)
    batch = found[0][3]
    assert batch.x0.shape == (6, 3, 64, 64)
    assert batch.x0.abs().max() <= 1 + 1e-6
    assert batch.tokens.shape == (6, MAX_TOKENS)
    assert ((batch.t > 0) & (batch.t < 1)).all()


@pytest.mark.parametrize("left", [None, "", "0", "4"])
def test_the_cache_renders_the_same_views_after_a_restart(tmp_path: Path, left: str | None) -> None:
    first = ImageCache(tmp_path / "a", 8, 0, 1)
    first.wait_for(8)
    images, cameras, specs = first.images.copy(), first.cameras.copy(), list(first.specs)
    first.close()
    (done,) = (tmp_path / "a").glob("*.done")
    assert done.read_text() == "8"
    if left is not None:  # killed while it said how far it was, or before it had said so
        done.write_text(left)
        first.images[int(left or 0) :] = 0
        first.images.flush()
    again = ImageCache(tmp_path / "a", 8, 0, 1)
    again.wait_for(8)
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_array_equal(again.cameras, cameras)
    assert again.specs == specs
    again.close()
    assert (images[..., 3] > 0).any(axis=(1, 2)).all()
    assert ((cameras[:, 1] >= -20) & (cameras[:, 1] <= 80)).all()


def test_text_and_camera_are_dropped_in_their_shares(script: ModuleType, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(vocabulary())
    config = _config(script, tmp_path, batch=500)
    cache = ImageCache(tmp_path, config.images, config.seed, 1)
    batches = [script.make_batch(config, cache, tokenizer, step) for step in range(4)]
    cache.close()
    empty = tokenizer(
        [""], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    no_text = torch.cat([(b.tokens == empty).all(1) for b in batches]).float()
    no_camera = torch.cat([b.camera.isnan().any(1) for b in batches]).float()
    # Four standard errors of shares over 2000 draws.
    assert no_text.mean() == pytest.approx(config.text_dropout, abs=0.03)
    assert no_camera.mean() == pytest.approx(config.camera_dropout, abs=0.04)
    both = (no_text * no_camera).mean()
    assert both == pytest.approx(config.text_dropout * config.camera_dropout, abs=0.015)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero(script: ModuleType) -> None:
    config = dataclasses.replace(
        script.TrainConfig(), steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0
    )
    rates = [script.learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0.0
    assert all(0 <= rate <= 1 for rate in rates)
