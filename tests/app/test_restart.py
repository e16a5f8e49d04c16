"""A server that goes down with work in hand, and one that comes up in its place."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sds3d.jobs.job import Job
from sds3d.jobs.states import FINISHED, State
from sds3d.ui.desk import Wish
from sds3d.ui.form import FIELDS
from sds3d.ui.serve import Served
from sds3d.ui.text_to_3d import TextTo3D

Serve = Callable[..., AbstractContextManager[Served]]


def _until(served: Served, job: Job, is_so: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 60
    while not is_so(found := served.desk.service.get(job.id)):
        assert time.monotonic() < deadline, f"the job is still {found.state}, step {found.step}"
        time.sleep(0.05)
    return found


def test_an_address_finds_its_job_after_a_restart_and_the_job_goes_on(
    serve: Serve, tmp_path: Path
) -> None:
    with serve(tmp_path) as first:
        wish = Wish(prompt="a blue mushroom", preset="fast", seed=3, steps=200)
        job = first.desk.service.submit(wish.config())
        _until(first, job, lambda found: found.step >= 30)
    with serve(tmp_path) as second:
        tab = TextTo3D(second.desk, ["toybox"], any_teacher=False)
        key, said, *form = tab.attach(job.id, {})[: 2 + FIELDS]
        assert (key, said) == (job.id, "")
        assert form[:5] == ["a blue mushroom", "", 3, "fast", "toybox"]
        *_, seen = tab.refresh(job.id, {})
        assert seen["is_live"]
        assert "a blue mushroom" in seen["status"]
        done = _until(second, job, lambda found: found.state in FINISHED)
        assert (done.state, done.step) == (State.DONE, 200)
        *_, placed = tab.refresh(job.id, seen)
        *_, shown = tab.refresh(job.id, placed)
        assert Path(shown["model"]).read_bytes()[:4] == b"glTF"
        # It did not begin again: the steps after the restart follow on those before.
        events = second.desk.service.follow(done).events
        begun = [i for i, event in enumerate(events) if event.get("name") == "optimize"]
        assert len(begun) == 2
        after = [event["step"] for event in events[begun[1] :] if event["event"] == "step"]
        assert after[0] > 30
