"""The tab from prompt to mesh: its handlers, called as functions."""

import dataclasses
import errno
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from sds3d.config_json import from_dict, to_dict
from sds3d.events import SOUND
from sds3d.jobs.job import Job
from sds3d.jobs.states import State
from sds3d.ui import pieces
from sds3d.ui.api import Api
from sds3d.ui.command import command_line
from sds3d.ui.desk import Desk, Wish
from sds3d.ui.form import FIELDS, preset_values, wish_of_form
from sds3d.ui.gallery import Gallery, cards
from sds3d.ui.look import Look, look, look_at_example
from sds3d.ui.options import all_choices
from sds3d.ui.plots import line_plot
from sds3d.ui.race import standing
from sds3d.ui.text_to_3d import TextTo3D
from sds3d.ui.watching import Reading

HTML = 'a mushroom <img src=x onerror=alert(1)> & "co"'


@pytest.fixture
def tab(desk: Desk) -> TextTo3D:
    return TextTo3D(desk, ["toybox"], any_teacher=False)


def _form(prompt: str, **changed: Any) -> list[Any]:
    names = [choice.name for choice in all_choices()]
    values = dict(zip(names, preset_values("fast"), strict=True))
    assert changed.keys() <= values.keys()
    return [prompt, "", 1, "fast", "toybox", *(values | changed).values()]


def test_the_server_imports_nothing_that_computes() -> None:
    code = (
        "import sys, sds3d.ui.serve, sds3d.ui.build\n"
        "found = {'torch', 'numba', 'diffusers', 'transformers', 'trimesh'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_run_is_shown_from_the_queue_to_its_mesh(
    tab: TextTo3D, desk: Desk, work: Callable[[], None]
) -> None:
    job_id, said, *_ = tab.generate("", {}, *_form("a red mushroom", steps=6))
    assert said == ""
    queued = look(desk, desk.service.get(job_id))
    assert (queued.is_live, queued.can_stop, queued.has_result) == (True, True, False)
    assert "next in the queue" in queued.status
    work()
    done = look(desk, desk.service.get(job_id))
    assert (done.is_live, done.can_stop) == (False, False)
    assert (done.can_continue, done.is_done) == (True, True)
    assert done.model is not None
    assert Path(done.model).read_bytes()[:4] == b"glTF"
    assert Path(done.model).is_relative_to(desk.copies)
    for name in ("mesh.glb", "mesh-obj.zip", "turntable.mp4", "result.json"):
        assert f"/jobs/{job_id}/{name}?download" in done.downloads
    assert "a little fog" in done.status
    assert "1 280" in done.report
    assert done.plots.count("<polyline") == 2


def test_a_full_disk_of_copies_hides_no_result(
    tab: TextTo3D,
    desk: Desk,
    submit: Callable[..., Job],
    work: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    job = submit()
    work()
    with monkeypatch.context() as patch:
        patch.setattr("sds3d.ui.desk.shutil.copyfile", refuse)
        shown = look(desk, desk.service.get(job.id))
        *_, seen = tab.refresh(job.id, {})
        with pytest.raises(gr.Error, match="no space left"):
            Api(desk).download(job.id, "mesh.glb")
        example = look_at_example(desk, desk.examples[0])
    assert (shown.has_result, shown.model) == (True, None)
    assert "no space left" in shown.status
    assert f"/jobs/{job.id}/mesh.glb?download" in shown.downloads
    assert seen["downloads"] == shown.downloads
    assert (example.has_result, example.model) == (True, None)
    # Nothing of it is left, and it is shown when there is room.
    assert [path for path in desk.copies.rglob("*") if path.is_file()] == []
    again = look(desk, desk.service.get(job.id))
    assert again.model is not None
    assert "no space left" not in again.status


def test_a_run_that_is_deleted_while_it_is_looked_at_is_shown_without_its_files(
    desk: Desk, submit: Callable[..., Job], work: Callable[[], None], monkeypatch: Any
) -> None:
    job = submit()
    gone = desk.service.out / "gone" / "growing.png"
    with monkeypatch.context() as patch:
        patch.setattr(desk.service, "picture", lambda _: gone)
        assert look(desk, job).picture == Look().picture
        assert "waits for its turn" in standing(desk, [job.id]).cards
    work()
    monkeypatch.setattr("sds3d.ui.desk.job_file", lambda *_: gone)
    shown = look(desk, desk.service.get(job.id))
    assert (shown.has_result, shown.model) == (True, None)


def test_only_what_changed_is_sent(
    tab: TextTo3D, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    job = submit()
    *first, seen = tab.refresh(job.id, {})
    assert seen == vars(look(desk, desk.service.get(job.id)))
    *again, same = tab.refresh(job.id, seen)
    assert same == seen
    assert all(update == {"__type__": "update"} for update in again)
    assert any(update != {"__type__": "update"} for update in first)
    work()
    # The place of the viewer first, the mesh a tick later.
    *_, placed = tab.refresh(job.id, seen)
    assert (placed["has_result"], placed["model"], placed["is_live"]) == (True, None, True)
    *_, shown = tab.refresh(job.id, placed)
    assert shown["model"] is not None
    assert shown["is_live"] is False


def test_what_a_user_wrote_is_escaped_everywhere(
    tab: TextTo3D, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    job = submit(HTML)
    pages = [look(desk, desk.service.get(job.id))]
    work()
    pages.append(look(desk, desk.service.get(job.id)))
    assert pages[1].has_result
    drawn, _ = cards(desk, "", 10)
    said = tab.preview("<script>alert(1)</script>", "", 0, "toybox", 3.0)
    for text in (*(page.status + page.report + page.downloads for page in pages), drawn, said):
        assert "<img src=x" not in text
        assert "<script" not in text
    assert "&lt;img src=x" in pages[1].status
    assert "&lt;img src=x" in drawn
    assert "nothing known" in said


def test_a_folder_that_cannot_be_read_hides_no_other_object(
    tab: TextTo3D, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    broken, sound = submit("a broken mushroom"), submit("a sound mushroom")
    work()
    folder = desk.service.folder(desk.service.get(broken.id))
    assert folder is not None
    (folder / "config.json").write_text("{")
    drawn, more = cards(desk, "", 10)
    assert (drawn.count("<article"), drawn.count("<img"), more) == (2, 1, False)
    assert "its folder cannot be read" in drawn
    assert f"/jobs/{sound.id}/preview.png" in drawn
    gallery = Gallery(desk, tab)
    event = SimpleNamespace(_data={"action": "delete", "job": broken.id})
    said, _, drawn, *_ = gallery.act("", 10, "", {}, cast(Any, event))
    assert said == ""
    assert drawn.count("<article") == 1
    assert not folder.exists()


def test_the_teachers_own_pictures_come_with_its_remarks(tab: TextTo3D) -> None:
    drawn = tab.preview("--a purplish mushroom", "", 3, "toybox", 2.0)
    assert 'src="data:image/png;base64,' in drawn
    assert "&lt;b&gt;purplish" in drawn
    assert "give one of" in tab.preview("a mushroom", "", 3, "/etc", 2.0)
    # Fields that were emptied.
    assert "<img" in tab.preview("a red mushroom", "", None, "toybox", None)
    assert "give one of" in tab.preview("a mushroom", "", None, None, None)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (_form(""), "prompt is empty"),
        (_form("a mushroom", steps=10**6), "--steps"),
        (_form("a mushroom", max_faces=3), "--max-faces"),
        (_form("a mushroom", texture_size=float("nan")), "--texture-size"),
        (_form("a mushroom", steps=2.5), "--steps is 2.5"),
        (_form("a mushroom", timestep_max="0.9 x"), "--timestep-max is"),
        (_form("a mushroom", timestep_max="0.9"), "give 2 values"),
        (_form("a mushroom", perp_neg=True), "--view-prompts interpolated"),
        (_form("a mushroom", method="reconstruction"), "--guidance-rescale"),
        (_form("a mushroom", method="magic"), "magic"),
        (_form("a\x00mushroom"), "control character"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_queued(
    tab: TextTo3D, desk: Desk, form: list[Any], named: str
) -> None:
    job_id, said, *_ = tab.generate("", {}, *form)
    assert job_id == ""
    assert named in said
    assert desk.service.jobs() == []


def test_stop_cancel_and_continue(
    tab: TextTo3D, desk: Desk, submit: Callable[..., Job], work: Callable[[], None]
) -> None:
    job = submit()
    assert tab.act("cancel", job.id, {})[0] == ""
    assert desk.service.get(job.id).state is State.CANCELLED
    assert "cannot be stopped" in tab.act("stop", job.id, {})[0]
    made = submit()
    work()
    assert tab.act("continue", made.id, {}, 4)[0] == ""
    work()
    again = desk.service.get(made.id)
    assert (again.state, again.step) == (State.DONE, 10)


def test_an_address_brings_back_the_job_and_its_form(
    tab: TextTo3D, submit: Callable[..., Job]
) -> None:
    job = submit("a blue mushroom", seed=7, options={"method": "csd", "timestep_min": (0.5, 0.1)})
    job_id, said, *form = tab.attach(job.id, {})[: 2 + FIELDS]
    assert (job_id, said) == (job.id, "")
    assert form[:5] == ["a blue mushroom", "", 7, "fast", "toybox"]
    # Generate would make the same again.
    assert to_dict(wish_of_form(*form).config())["optimize"] == job.config["optimize"]
    assert form != _form("a blue mushroom")
    gone, said, *_ = tab.attach("nothing", {})
    assert gone == ""
    assert "there is no job" in said
    assert tab.refresh("", {})[-1] == vars(Look())


@pytest.mark.parametrize(
    "wish",
    [
        Wish(prompt="a red mushroom"),
        Wish(prompt="--seed", preset="fast", seed=9, steps=12, guidance_scale=2.5),
        Wish(prompt=HTML, negative_prompt="it's red", resolution=48, max_faces=500, texture_size=0),
        Wish(
            prompt="a mushroom",
            options={
                "method": "ism",
                "view_prompts": "interpolated",
                "perp_neg": True,
                "camera_guidance": False,
                "guidance_rescale": 0.25,
                "timestep_policy": "sqrt",
                "timestep_max": [0.9, 0.5],
                "elevation_range_deg": [-5.0, 30.0],
                "mesh_resolution": 64,
            },
        ),
    ],
)
def test_the_command_line_makes_the_same(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    from sds3d import cli
    from sds3d import generate as pipeline

    made: list[Any] = []
    monkeypatch.setattr(pipeline, "generate", lambda config, **_: made.append(config) or 1 / 0)
    words = shlex.split(command_line(wish.config()))
    assert words[:2] == ["sds3d", "generate"]
    cli.main(words[1:])
    assert to_dict(made[0]) == to_dict(wish.config())


def test_the_form_and_the_api_mean_the_same() -> None:
    by_form = wish_of_form(*_form("a mushroom")).config()
    assert by_form == Wish(prompt="a mushroom", seed=1, preset="fast").config()
    assert from_dict(to_dict(by_form)) == by_form


def test_a_journal_that_steps_back_is_read_as_its_later_lines_say() -> None:
    reading = Reading()
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.5), (3, 0.6)):
        reading.hear({"event": "step", "step": step, "opacity": value, "time": 10.0 + step / 2})
    assert reading.opacity == {1: 0.1, 2: 0.5, 3: 0.6}
    assert reading.steps_per_second == pytest.approx(2.0)


def test_the_health_is_said_only_after_somebody_looked(submit: Callable[..., Job]) -> None:
    job = dataclasses.replace(submit(), state=State.RUNNING)
    reading = Reading()

    def after(step: int) -> str:
        reading.hear({"event": "step", "step": step, "opacity": 0.2})
        return pieces.health(job, reading, None)

    assert pieces.health(job, reading, None) == ""
    assert [after(1), after(49)] == ["not judged yet"] * 2
    assert after(50) == SOUND
    reading.hear({"event": "health", "text": "fog: half transparent"})
    assert after(51) == "fog: half transparent (seen at step 50)"
    reading.hear({"event": "health", "text": SOUND})
    assert "fog" not in after(100)
    # The mesh of a second stage is judged anew, whatever the field was like.
    reading.hear({"event": "health", "text": "fog: half transparent"})
    reading.hear({"event": "stage", "name": "refine"})
    assert after(101) == "not judged yet"
    assert after(150) == SOUND
    assert pieces.health(job, reading, {"health": []}) == SOUND
    assert pieces.health(job, reading, {"health": ["a little fog"]}) == "a little fog"


@pytest.mark.parametrize("stage", ["optimize", "refine"])
def test_both_stages_are_named_with_their_pace(submit: Callable[..., Job], stage: str) -> None:
    job = dataclasses.replace(submit(), state=State.RUNNING, step=20, eta_seconds=42.0)
    reading = Reading()
    for step in range(10, 21):
        reading.hear({"event": "step", "step": step, "opacity": 0.2, "time": step / 2})
    reading.hear({"event": "stage", "name": stage})
    drawn = pieces.status(job, reading)
    assert pieces.STAGES[stage] in drawn
    assert "starting" not in drawn
    assert "2.0 steps/s" in drawn
    assert "0:42 left" in drawn
    reading.hear({"event": "stage", "name": "mesh"})
    assert "steps/s" not in pieces.status(job, reading)


def test_a_plot_draws_each_value_in_its_place() -> None:
    drawn = line_plot("Loss <b>", {"a": {0: 0.0, 50: 1.0, 100: float("nan")}}, steps=100)
    assert "&lt;b&gt;" in drawn
    assert re.findall(r'points="(.*?)"', drawn) == ["4.0,90.0 160.0,6.0"]
    assert line_plot("Loss", {"a": {1: 1.0}}, steps=100) == ""
