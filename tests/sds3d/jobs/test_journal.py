"""Events as lines: whole ones are read once, torn and damaged ones cost nothing but themselves."""

import json
import random
from pathlib import Path
from typing import Any

from sds3d.events import Stage, Step, Warning
from sds3d.jobs.journal import JOURNAL, Journal, follow


def _step(step: int, **fields: Any) -> Step:
    return Step(
        step=step,
        steps=100,
        timestep=0.5,
        opacity=0.5,
        step_seconds=0.1,
        eta_seconds=1.0,
        **fields,
    )


def test_events_are_followed_from_where_one_left_off(tmp_path: Path) -> None:
    assert follow(tmp_path).events == []
    journal = Journal(tmp_path, now=lambda: 12.5)
    journal.begin()
    journal.write(Stage("teacher"))
    first = follow(tmp_path)
    assert first.events == [{"event": "stage", "name": "teacher", "time": 12.5}]
    assert follow(tmp_path, first.offset).events == []
    journal.write(Warning("wörds\nand lines"))
    second = follow(tmp_path, first.offset)
    assert [event["text"] for event in second.events] == ["wörds\nand lines"]
    # One that is shorter was begun anew.
    (tmp_path / JOURNAL).unlink()
    journal.write(Stage("optimize"))
    assert [event["name"] for event in follow(tmp_path, second.offset).events] == ["optimize"]


def test_steps_are_thinned_out_but_never_the_last_or_one_with_a_measurement(
    tmp_path: Path,
) -> None:
    now = [100.0]
    journal = Journal(tmp_path, now=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.01
        journal.write(_step(step, agreement=0.5) if step == 50 else _step(step))
    steps = [event["step"] for event in follow(tmp_path).events]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert 50 in steps
    assert 5 <= len(steps) <= 9


def test_a_torn_line_waits_and_is_closed_by_the_next_worker(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(Stage("teacher"))
    path = tmp_path / JOURNAL
    with path.open("ab") as file:
        file.write(b'{"event": "sta')
    torn = follow(tmp_path)
    assert (len(torn.events), torn.damaged) == (1, 0)
    again = Journal(tmp_path)
    again.begin()
    again.write(Stage("optimize"))
    rest = follow(tmp_path, torn.offset)
    assert [event["name"] for event in rest.events] == ["optimize"]
    assert rest.damaged == 1


def test_damaged_lines_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    draw = random.Random(0)
    journal = Journal(tmp_path)
    for number in range(200):
        journal.write(Stage(str(number)))
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines()
    junk = [b"\xff\xfe", b"{", b"[]", b"1", b'"x"', b'{"event": 3}', b"[" * 9999, b"null"]
    for damaged in range(0, 200, 2):
        lines[damaged] = draw.choice(junk)
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = follow(tmp_path)
    assert [event["name"] for event in found.events] == [str(n) for n in range(1, 200, 2)]
    assert found.damaged == 100


def test_a_line_is_what_json_reads(tmp_path: Path) -> None:
    Journal(tmp_path).write(_step(1, agreement=float("nan")))
    (line,) = (tmp_path / JOURNAL).read_text().splitlines()
    assert json.loads(line)["agreement"] is None
