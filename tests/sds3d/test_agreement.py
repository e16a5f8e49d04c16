"""The teacher's agreement: the mean it says it is, fixed in everything, and no part of the run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from sds3d import agreement, optimize
from sds3d.agreement import TIMES, is_due, measure_agreement, render_views
from sds3d.config import GenerateConfig
from sds3d.events import Event, Step
from sds3d.generate import export_run, generate
from sds3d.optimize import Optimization, Optimized, StepClock
from sds3d.optimize_config import OptimizeConfig
from sds3d.runs import CheckpointFile
from sds3d.views import ring


def _config(fakes: SimpleNamespace, **options: Any) -> GenerateConfig:
    chosen = replace(fakes.tiny_options, **options)
    return GenerateConfig(
        prompt="a mushroom", device="cpu", checkpoint_seconds=1e6, optimize=chosen
    )


def _run(
    config: GenerateConfig, teacher: Any, folder: Path, *, stop_after: int | None = None
) -> tuple[Optimized, list[Step]]:
    folder.mkdir(exist_ok=True)
    heard: list[Event] = []
    found = optimize.optimize(
        config,
        teacher,
        checkpoint=CheckpointFile(folder),
        on_event=heard.append,
        should_stop=lambda: len(heard) == stop_after,
    )
    return found, [event for event in heard if isinstance(event, Step)]


@pytest.mark.parametrize("views_per_step", [1, 3, 4])
def test_it_is_the_mean_square_from_what_the_teacher_would_see(
    fakes: SimpleNamespace, views_per_step: int
) -> None:
    loop = Optimization(_config(fakes, views_per_step=views_per_step), fakes.GreyTeacher())
    for _ in range(2):  # at first it is as grey as what is behind it
        loop.advance(StepClock())
    x = 2 * render_views(loop, ring(4, 20.0), 8, 0.5) - 1
    expected = float((x - fakes.GreyTeacher.grey).square().mean())
    assert x.std() > 1e-3
    assert measure_agreement(loop) == pytest.approx(expected, rel=1e-5)


def test_times_noise_and_cameras_are_the_same_in_every_call(fakes: SimpleNamespace) -> None:
    asked: list[tuple[Tensor, Tensor, Conditioning]] = []

    @dataclass
    class Listening(fakes.GreyTeacher):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Prediction:
            asked.append((x_t, t, cond))
            return super().__call__(x_t, t, cond)

    loop = Optimization(_config(fakes, views_per_step=4), Listening())
    generator = torch.get_rng_state()
    first = measure_agreement(loop)
    loop.step += 17
    torch.rand(3)
    assert measure_agreement(loop) == first
    (x_t, t, cond), (x_again, t_again, cond_again) = asked
    assert torch.equal(x_t, x_again)
    assert torch.equal(t, t_again)
    assert t.tolist() == pytest.approx(TIMES)
    assert cond.camera is not None
    assert cond_again.camera is not None
    assert torch.equal(cond.camera, cond_again.camera)
    assert cond.camera[:, 0].tolist() == [0, 90, 180, 270]
    torch.set_rng_state(generator)
    measure_agreement(loop)
    assert torch.equal(torch.get_rng_state(), generator)
    # Noise is on the views, as much as their times say.
    clean = 2 * render_views(loop, ring(4, 20.0), 8, 0.5) - 1
    noise = (x_t - (1 - t)[:, None, None, None] * clean) / t[:, None, None, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = []
    for due in (lambda *_: False, lambda *_: True):
        monkeypatch.setattr(optimize, "is_due", due)
        found, steps = _run(_config(fakes), fakes.GreyTeacher(), tmp_path / str(len(fields)))
        fields.append(found.particles[0].state_dict())
        assert [step.agreement is not None for step in steps] == [due()] * 4
    assert all(torch.equal(fields[0][name], fields[1][name]) for name in fields[0])


def test_an_interrupted_run_tells_the_history_of_an_uninterrupted_one(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "INTERVAL", 3)
    config = _config(fakes, steps=8)
    whole, steps = _run(config, fakes.GreyTeacher(), tmp_path / "whole")
    assert list(whole.agreement) == [3, 6, 8]
    assert {s.step: s.agreement for s in steps if s.agreement is not None} == whole.agreement
    stopped, _ = _run(config, fakes.GreyTeacher(), tmp_path / "parts", stop_after=4)
    assert (stopped.step, list(stopped.agreement)) == (4, [3])
    resumed, _ = _run(config, fakes.GreyTeacher(), tmp_path / "parts")
    assert resumed.agreement == whole.agreement
    states = [CheckpointFile(tmp_path / name).load() for name in ("whole", "parts")]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0][1] == states[1][1]
    # One more step is measured at its end, and leaves no trace in what further steps begin from.
    longer = _config(fakes, steps=8, extra_steps=2)
    more, _ = _run(longer, fakes.GreyTeacher(), tmp_path / "parts")
    assert list(more.agreement) == [3, 6, 8, 9, 10]
    kept = CheckpointFile(tmp_path / "parts").load()
    assert kept is not None
    assert [step for step, _ in kept[1]["agreement"]] == [3, 6, 8, 9]


def test_a_figure_that_is_none_is_left_out(fakes: SimpleNamespace) -> None:
    class Broken(fakes.GreyTeacher):
        grey = float("nan")

    loop = Optimization(_config(fakes), Broken())
    assert measure_agreement(loop) is None


def test_it_takes_no_more_than_a_thirtieth_of_the_steps() -> None:
    for steps in (100, 400, 1000, 1234):
        options = OptimizeConfig(steps=steps)
        due = [step for step in range(1, steps + 1) if is_due(step, options)]
        assert due[-1] == steps
        assert 2 <= len(due) <= steps / 33
    assert [s for s in range(1, 391) if is_due(s, OptimizeConfig(steps=390))][-2:] == [350, 390]


def test_a_result_keeps_the_history_also_when_only_its_mesh_is_made_anew(
    fakes: SimpleNamespace, tmp_path: Path
) -> None:
    config = replace(_config(fakes), out=tmp_path)
    parts = fakes.make_parts()
    made = generate(config, parts=parts)
    assert made.result["agreement"] == [[4, 0.5]]
    saved = json.loads((made.folder / "result.json").read_text())
    assert saved["agreement"] == [[4, 0.5]]
    again = export_run(made.folder, max_faces=500, parts=parts)
    assert again.result["mesh"] == {"faces": 500}
    assert again.result["agreement"] == [[4, 0.5]]
