"""Events as lines of JSON."""

import json
from pathlib import Path

import pytest

from sds3d.events import Event, Failure, Health, Preview, Result, Stage, Step, Warning

EVENTS: list[Event] = [
    Stage("mesh"),
    Step(step=1, steps=2, timestep=0.5, opacity=float("nan"), step_seconds=0.1, eta_seconds=0.1),
    Warning("two\nlines and a \u2028 separator"),
    Health("fog"),
    Preview(Path("a/b.png")),
    Result(folder=Path("out/x"), result={"files": {"a": 1}, "size": (1.0, float("inf"))}),
    Failure(text="no", exit_code=2),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_of_strict_json_with_every_field(event: Event) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = event.to_json()
    assert "\n" not in line
    document = json.loads(line, parse_constant=refuse)
    assert document.pop("event") == type(event).__name__.lower()
    assert set(document) == set(vars(event))


def test_numbers_that_json_lacks_become_null_at_any_depth() -> None:
    assert json.loads(EVENTS[1].to_json())["opacity"] is None
    assert json.loads(EVENTS[5].to_json())["result"]["size"] == [1.0, None]
