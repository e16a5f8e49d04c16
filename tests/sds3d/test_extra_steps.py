"""Steps after the planned ones: one way to the same bits, whenever they were asked for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sds3d.config import GenerateConfig
from sds3d.events import Event, Step
from sds3d.optimize import Optimization, StepClock, optimize
from sds3d.optimize_config import OptimizeConfig
from sds3d.runs import CheckpointFile


def _run(
    fakes: SimpleNamespace, options: OptimizeConfig, folder: Path, heard: list[Event]
) -> dict[str, Any]:
    config = GenerateConfig(prompt="a mushroom", device="cpu", optimize=options)
    folder.mkdir(exist_ok=True)
    checkpoint = CheckpointFile(folder)
    never: Callable[[], bool] = lambda: False  # noqa: E731
    optimize(
        config,
        fakes.GreyTeacher(),
        checkpoint=checkpoint,
        on_event=heard.append,
        should_stop=never,
    )
    state = checkpoint.load()
    assert state is not None
    return state[0]


def test_steps_added_to_a_done_run_are_those_that_were_asked_for_at_once(
    fakes: SimpleNamespace, tmp_path: Path, heard: list[Event]
) -> None:
    planned = fakes.tiny_options
    longer = dataclasses.replace(planned, extra_steps=3)
    _run(fakes, planned, tmp_path / "a", [])
    added = _run(fakes, longer, tmp_path / "a", heard)
    assert [event.step for event in heard if isinstance(event, Step)] == [5, 6, 7]
    assert {event.steps for event in heard if isinstance(event, Step)} == {7}
    at_once = _run(fakes, longer, tmp_path / "b", [])
    assert added.keys() == at_once.keys()
    assert all(torch.equal(added[name], at_once[name]) for name in added)


def test_extra_steps_stay_at_the_end_of_the_schedules(fakes: SimpleNamespace) -> None:
    options = dataclasses.replace(fakes.tiny_options, steps=2, extra_steps=3)
    config = GenerateConfig(prompt="a mushroom", device="cpu", optimize=options)
    loop = Optimization(config, fakes.GreyTeacher())
    rates = []
    for _ in range(options.total_steps):
        loop.advance(StepClock())
        rates.append(loop.optimizer.param_groups[0]["lr"])
    last = options.encoding_learning_rate * options.final_learning_rate
    assert rates[0] == options.encoding_learning_rate
    assert rates[2:] == [last] * 3
    assert rates[1] > last
