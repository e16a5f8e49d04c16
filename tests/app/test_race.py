"""A race of seeds: fair, all or none, and its winner becomes the run of its seed."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sds3d.generate import generate
from sds3d.jobs.job import Job
from sds3d.jobs.race import compare, start_race
from sds3d.jobs.states import FINISHED, State
from sds3d.ui.desk import Desk, Wish
from sds3d.ui.form import FIELDS, form_of
from sds3d.ui.race import Race, standing
from sds3d.ui.text_to_3d import TextTo3D

FORM = form_of(Wish(prompt="a red mushroom", preset="fast", seed=1, steps=30).config())


@pytest.fixture
def race(desk: Desk) -> Race:
    return TextTo3D(desk, ["toybox"], any_teacher=False).race


def _start(race: Race, runners: int = 3, steps: int = 10) -> list[Job]:
    ids, said, *_ = race.start("", {}, runners, steps, *FORM)
    assert said == ""
    return [race.desk.service.get(job_id) for job_id in ids.split(".")]


def test_seeds_race_and_the_best_goes_on_to_the_run_of_its_seed(
    race: Race, desk: Desk, work: Callable[[], None], pictures: ModuleType, tmp_path: Path
) -> None:
    jobs = _start(race)
    ids = [job.id for job in jobs]
    assert [job.config["seed"] for job in jobs] == [1, 2, 3]
    waiting = standing(desk, ids)
    assert (waiting.is_over, waiting.best) == (False, None)
    work()
    assert {desk.service.get(job_id).step for job_id in ids} == {10}
    over = standing(desk, ids)
    assert (over.is_over, over.best) == (True, ids[1])
    assert over.cards.count("<img") == 3
    assert over.cards.count("<polyline") == 3
    assert over.cards.count('class="status stopped best"') == 1
    panel, _, pick, onward, *_ = race.refresh(".".join(ids), vars(waiting))
    assert (pick["value"], pick["visible"], onward["visible"]) == (ids[1], True, True)
    assert panel == {"__type__": "update"}  # as before
    # The user may think otherwise; here they agree.
    outputs = race.go_on(".".join(ids), {}, ids[1])
    assert outputs[0] == ""
    shown, said, *form = outputs[8 : 10 + FIELDS]
    assert (shown, said) == (ids[1], "")
    assert form == [*FORM[:2], 2, *FORM[3:]]
    work()
    states = [desk.service.get(job_id).state for job_id in ids]
    assert states == [State.STOPPED, State.DONE, State.STOPPED]
    result = desk.service.result(desk.service.get(ids[1]))
    assert result is not None
    straight = Wish(prompt="a red mushroom", preset="fast", seed=2, steps=30).config()
    parts = pictures._make_bench()._make_parts("toybox")
    import dataclasses

    alone = generate(dataclasses.replace(straight, out=tmp_path / "alone"), parts=parts)
    assert result["key"] == alone.result["key"]
    assert result["steps"] == alone.result["steps"] == 30


def test_a_choice_of_the_user_is_not_taken_back(
    race: Race, desk: Desk, work: Callable[[], None]
) -> None:
    ids = [job.id for job in _start(race, 2)]
    work()
    text = ".".join(ids)
    *_, seen = race.refresh(text, {})
    again = race.refresh(text, seen)
    assert all(update == {"__type__": "update"} for update in (*again[:5],))
    assert race.go_on(text, seen, ids[0])[0] == ""
    assert desk.service.get(ids[0]).state is State.QUEUED
    assert desk.service.get(ids[1]).state is State.STOPPED


@pytest.mark.parametrize(
    ("runners", "steps", "named"),
    [(1, 10, "2 to 4"), (5, 10, "2 to 4"), (None, 10, "2 to 4"), (2, 30, "--steps 30")],
)
def test_what_is_no_race_is_said_and_nothing_is_queued(
    race: Race, desk: Desk, runners: Any, steps: int, named: str
) -> None:
    ids, said, *_ = race.start("", {}, runners, steps, *FORM)
    assert ids == ""
    assert named in said
    assert all(job.state in FINISHED for job in desk.service.jobs())


def test_a_race_that_does_not_fit_into_the_queue_leaves_nothing_there(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sds3d.jobs import service
    from sds3d.jobs.errors import QueueFull

    def check(waiting: int, _: Any) -> None:
        if waiting >= 2:
            raise QueueFull("full")

    monkeypatch.setattr(service, "check_queue", check)
    config = Wish(prompt="a red mushroom", preset="fast", steps=30).config()
    with pytest.raises(QueueFull):
        start_race(desk.service, config, runners=3, steps=10)
    assert [job.state for job in desk.service.jobs()] == [State.CANCELLED] * 2


def test_an_address_brings_a_race_back_and_its_end_keeps_what_is_ready(
    race: Race, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    ids = [job.id for job in _start(race, 2)]
    text = ".".join(ids)
    kept, _, panel, cards, *_ = race.load(text, {})
    assert (kept, panel["visible"]) == (text, True)
    assert cards.count("<article") == 2
    *_, timer, seen = race.load(text, {})
    assert timer == {"active": True, "__type__": "update"}
    # The next look sends what changed, which is nothing yet.
    _, said, *same, timer, seen = race.load(text, seen)
    assert all(update == {"__type__": "update"} for update in (said, *same))
    gone, said, panel, *_ = race.load("no.such", {})
    assert (gone, panel["visible"]) == ("", False)
    assert "there is no job" in said
    assert race.go_on(text, {}, None)[0] == text
    work()
    late = submit(seed=9)
    assert race.end(f"{text}.{late.id}")[0] == ""
    states = [desk.service.get(job_id).state for job_id in (*ids, late.id)]
    assert states == [State.STOPPED, State.STOPPED, State.CANCELLED]


def test_a_race_of_which_one_was_deleted_goes_on_and_can_be_closed(
    race: Race, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    gone, kept = (job.id for job in _start(race, 2))
    work()
    late = submit(seed=9).id
    text = f"{gone}.{kept}.{late}"
    *_, seen = race.refresh(text, {})
    desk.service.delete(gone)
    shown, _, panel, cards, *_, after = race.load(text, seen)
    assert shown == text
    assert panel == {"__type__": "update"}
    assert cards.count("<article") == 2
    assert [job_id for _, job_id in after["runners"]] == [kept, late]
    # Who was deleted in this very moment cannot go on, and the page says so.
    stays, *_, said = race.go_on(text, seen, gone)[:10]
    assert stays == text
    assert "there is no job" in said
    assert race.end(text)[:2] == ["", ""]
    states = [desk.service.get(job_id).state for job_id in (kept, late)]
    assert states == [State.STOPPED, State.CANCELLED]
    desk.service.delete(kept)
    left, *_, said = race.go_on(gone, seen, gone)[:10]
    assert left == ""
    assert "there is no job" in said
    assert race.end(gone)[:2] == ["", ""]
    begun, said, *_ = race.start(gone, seen, 9, 10, *FORM)
    assert begun == ""
    assert "2 to 4" in said


def test_runs_are_compared_where_all_of_them_were_measured() -> None:
    assert compare([{50: 3.0, 100: 1.0}, {50: 2.0}]) == [3.0, 2.0]
    assert compare([{50: 3.0, 100: 1.0}, {100: 2.0}]) == [1.0, 2.0]
    assert compare([{50: 3.0}, {}]) == [None, None]
    assert compare([]) == []
