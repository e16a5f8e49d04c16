"""Examples that ship: shown at once, served by name alone, and none where there are none."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trimesh
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sds3d.assets import shipped
from sds3d.jobs.job import Job
from sds3d.ui.desk import Desk
from sds3d.ui.examples import Example, chips, load_examples, routes
from sds3d.ui.form import FIELDS
from sds3d.ui.processes import Processes
from sds3d.ui.text_to_3d import TextTo3D


def _entry(**changed: Any) -> dict[str, Any]:
    return {
        "prompt": 'a red "mushroom" <b>',
        "seed": 4,
        "preset": "fast",
        "seconds": 61.0,
        "faces": 12,
        "device": "cpu",
        "weights_sha256": "a" * 64,
        "mesh": "a-red-mushroom.glb",
        "thumbnail": "a-red-mushroom.png",
        **changed,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "examples"
    made.mkdir()
    trimesh.creation.box().export(made / "a-red-mushroom.glb")
    Image.new("RGB", (8, 8)).save(made / "a-red-mushroom.png")
    (made / "examples.json").write_text(json.dumps({"examples": [_entry()]}))
    return made


@pytest.fixture
def tab(desk: Desk, processes: Processes, folder: Path) -> TextTo3D:
    examples = load_examples(folder)
    stocked = Desk(desk.service, processes=processes, copies=desk.copies, examples=examples)
    return TextTo3D(stocked, ["toybox"], any_teacher=False)


def _click(tab: TextTo3D, job_id: str, key: object) -> list[Any]:
    event: Any = SimpleNamespace(_data={"example": key})
    return tab.show_example(job_id, event)


def test_a_click_shows_the_mesh_and_the_prompt_it_was_made_from(tab: TextTo3D) -> None:
    (example,) = tab.desk.examples
    key, said, *form = _click(tab, "", example.key)[: 2 + FIELDS]
    assert (key, said) == ("example:a-red-mushroom", "")
    assert form[:5] == [example.prompt, "", 4, "fast", "toybox"]
    # The place of the viewer first, the mesh a tick later.
    *_, placed = tab.attach(key, {})
    *_, shown = tab.refresh(key, placed)
    assert Path(shown["model"]).read_bytes() == example.mesh.read_bytes()
    assert Path(shown["model"]).is_relative_to(tab.desk.copies)
    assert (shown["is_live"], shown["can_stop"], shown["can_continue"]) == (False, False, False)
    assert "&lt;b&gt;" in shown["status"]
    assert "1:01 on cpu" in shown["status"]
    assert "/examples/a-red-mushroom.glb?download" in shown["downloads"]


def test_a_click_on_what_is_no_example_changes_nothing(
    tab: TextTo3D, submit: Callable[..., Job]
) -> None:
    job = submit("a blue mushroom")
    for key in ("example:none", "../../jobs.sqlite3", "", None, {}):
        assert _click(tab, job.id, key)[0] == job.id


def test_chips_are_escaped_and_absent_where_there_are_none(folder: Path) -> None:
    drawn = chips(load_examples(folder))
    assert drawn.count("<button") == drawn.count("<img") == 1
    assert "&lt;b&gt;" in drawn
    assert chips(()) == ""


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[]",
        '{"examples": 3}',
        '{"examples": [3, null, {}]}',
        json.dumps({"examples": [_entry(mesh="missing.glb")]}),
        json.dumps({"examples": [_entry(mesh="../examples/a-red-mushroom.glb")]}),
        json.dumps({"examples": [_entry(thumbnail=7)]}),
        json.dumps({"examples": [_entry(preset="none")]}),
        json.dumps({"examples": [_entry(seed="x")]}),
        json.dumps({"examples": [_entry(prompt="a\x00")]}),
    ],
)
def test_what_is_no_example_is_left_out(folder: Path, text: str | None) -> None:
    assert len(load_examples(folder)) == 1
    (folder / "examples.json").unlink()
    if text is not None:
        (folder / "examples.json").write_text(text)
    assert load_examples(folder) == ()
    assert load_examples(folder / "nowhere") == ()


def test_their_files_are_served_and_no_others(folder: Path) -> None:
    (folder / "secret.png").write_bytes(b"secret")
    client = TestClient(Starlette(routes=list(routes(load_examples(folder)))))
    picture = client.get("/examples/a-red-mushroom.png")
    assert picture.content == (folder / "a-red-mushroom.png").read_bytes()
    assert picture.headers["content-type"] == "image/png"
    mesh = client.get("/examples/a-red-mushroom.glb?download")
    assert mesh.content[:4] == b"glTF"
    assert "attachment" in mesh.headers["content-disposition"]
    for name in ("secret.png", "examples.json", "..%2Fexamples%2Fsecret.png", "%2e%2e"):
        assert client.get(f"/examples/{name}").status_code == 404


def test_what_ships_is_small_and_whole() -> None:
    folder = shipped("examples")
    found = load_examples(folder)
    listed = json.loads((folder / "examples.json").read_text())["examples"]
    assert len(found) == len(listed) > 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3 * 2**20
    for example in found:
        _is_whole(example)


def _is_whole(example: Example) -> None:
    scene: Any = trimesh.load(example.mesh, process=False)
    (mesh,) = scene.geometry.values()
    assert len(mesh.faces) == example.faces
    assert mesh.extents.max() == pytest.approx(1, abs=0.01)
    with Image.open(example.thumbnail) as picture:
        assert picture.size[0] == picture.size[1] <= 256
