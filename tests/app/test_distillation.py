"""The tab of students: choosing by the taxonomy, training in processes, comparing."""

import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sds3d.distill.refusals import GROUND_HAS
from sds3d.distill.run import DistillConfig
from sds3d.errors import BadInput, ConfigError
from sds3d.ui import shipped, shipped_students
from sds3d.ui.distillation import MOST, Distillation
from sds3d.ui.kept_students import QUEUE, keep, kept
from sds3d.ui.processes import CommandFailed, Processes
from sds3d.ui.taxonomy import GROUNDS, TOYBOX, Catalogue, card_html, tree_html
from sds3d.ui.trainings import MOST_WAITING, Training, Trainings

COMMAND = (sys.executable, str(Path(__file__).with_name("command_with_fakes.py")))
PLANE, LINE = "Six modes on a circle (2D)", "Two modes on a line (1D)"
ADVANCED = (64, 1e-3)


def _card(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.title(),
        "family": "path",
        "student": "flow map",
        "needs": ["a teacher"],
        "nfe": [1, 2],
        "makes_nfe": False,
        "reference": "arXiv 2505.13447",
        "idea": "An <idea>.",
        "equation": "u < v",
        **fields,
    }


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(
        [
            _card("meanflow"),
            _card("guided", needs=["class labels"], nfe=[2, 4]),
            _card("sid", family="generator", student="generator", nfe=[1]),
            _card("wrong"),
            _card("hangs"),
        ]
    )


@pytest.fixture
def trainings(processes: Processes, tmp_path: Path) -> Iterator[Trainings]:
    made = Trainings(processes, tmp_path / "students")
    yield made
    made.close()


@pytest.fixture
def tab(catalogue: Catalogue, trainings: Trainings) -> Distillation:
    return Distillation(catalogue, trainings)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _event(method: str) -> gr.EventData:
    return gr.EventData(None, {"method": method})


def test_the_real_catalogue_fills_the_tab() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "sds3d.cli", "methods", "--json"],
        capture_output=True,
        check=True,
        text=True,
    )
    cards = json.loads(listed.stdout)
    tree = html.unescape(tree_html(cards, ["dmd2"], "mixture-1d"))
    assert len(cards) > 30
    for card in cards:
        assert f'data-method="{card["name"]}"' in tree
        assert card["family"][1:] in tree
        assert card["idea"] in tree
        shown = html.unescape(card_html(card))
        assert card["idea"] in shown
        assert card["equation"] in shown
        assert card["reference"].split()[0] in shown
    assert tree.count('aria-pressed="true"') == 1
    # A method that this ground does not serve says so in the words of the command line.
    refused = [card["name"] for card in cards if "class labels" in card["needs"]]
    assert refused
    for name in refused:
        assert f"{name} needs class labels, and the ground mixture-1d has none" in tree


def test_the_taxonomy_chooses_up_to_four(tab: Distillation) -> None:
    names, *_ = tab.pick(PLANE, ["meanflow"], _event("sid"))
    assert names == ["meanflow", "sid"]
    names, _, _, tree, cards, nfe, notice = tab.pick(PLANE, names, _event("meanflow"))
    assert names == ["sid"]
    assert tree.count('aria-pressed="true"') == 1
    assert "<h3>Sid</h3>" in cards
    assert (nfe["choices"], nfe["value"], notice) == ([1], 1, "")
    four = ["meanflow", "sid", "wrong", "guided"]
    assert len(four) == MOST
    names, *_, notice = tab.pick(PLANE, four, _event("hangs"))
    assert names == four
    assert "4 methods are compared at most" in notice
    *_, notice = tab.pick(PLANE, [], _event("<img src=x>"))
    assert "&lt;img" in notice


def test_numbers_of_evaluations_are_those_that_all_share(tab: Distillation) -> None:
    nfe = tab.choose(PLANE, ["meanflow", "guided"])[4]
    assert (nfe["choices"], nfe["value"]) == ([2], 2)
    *_, nfe, notice = tab.choose(PLANE, ["sid", "guided"])
    assert nfe["choices"] == [1, 2, 4]
    assert "share no number of evaluations: sid 1; guided 2, 4" in notice


def test_a_card_escapes_and_links(catalogue: Catalogue) -> None:
    card = catalogue.find("meanflow")
    assert card is not None
    drawn = card_html({**card, "reference": "arXiv 2505.13447, 2309.06380"})
    assert "An &lt;idea&gt;." in drawn
    assert 'href="https://arxiv.org/abs/2505.13447"' in drawn
    assert 'href="https://arxiv.org/abs/2309.06380"' in drawn


def test_two_students_are_trained_and_compared(tab: Distillation, trainings: Trainings) -> None:
    said, keys, *_ = tab.train(PLANE, ["meanflow", "sid"], 1, 40, 0, *ADVANCED)
    assert said == ""
    assert len(keys) == 2
    states = [trainings.get(key) for key in keys]
    _until(lambda: all(t is not None and t.state == "done" for t in states))
    drawn, timer, stop, made = tab.refresh(keys)
    assert timer["active"] is False
    assert stop["visible"] is False
    assert {key for _, key in made["choices"]} == set(keys)
    for key in keys:
        assert f"/students/{key}/student.png" in drawn
    # The teacher once, before them, in many evaluations and in as few.
    assert drawn.count("/teacher.png") == drawn.count("/teacher-few.png") == 1
    assert drawn.index("/teacher-few.png") < drawn.index("/student.png")
    table = re.sub(r"<[^>]+>", " ", drawn[drawn.index("<table") :]).split()
    assert " ".join(table).endswith(
        "Teacher, 64 evaluations by DDIM Teacher, 1 evaluation by DDIM 0.6 Meanflow 0.1 Sid 0.2"
    )
    assert "<td class=best>0.1</td>" in drawn
    assert "Distance to the teacher: <b" in drawn
    assert "0.375" in drawn
    first = trainings.get(keys[0])
    assert first is not None
    assert first.losses["student"][0] == 1.0
    assert first.to_teacher == {10: 0.2, 20: 0.1, 30: 2 / 30, 40: 0.05}
    # What is there is not trained again, and is offered, also by a server that never heard of it.
    anew = Trainings(tab.trainings.processes, trainings.out)
    assert anew.submit(first.config).state == "done"
    other = Trainings(tab.trainings.processes, trainings.out)
    assert sorted(t.key for t in other.made("mixture")) == sorted(keys)
    assert other.made("digits") == []
    assert Distillation(tab.catalogue, other).compare(keys)[2] == drawn
    for opened in (anew, other):
        opened.close()


def test_only_students_alike_are_compared(tab: Distillation, trainings: Trainings) -> None:
    keys: list[str] = []
    for nfe in (1, 2):
        keys += tab.train(PLANE, ["meanflow"], nfe, 40, 0, *ADVANCED)[1]
    _until(lambda: all(t.state == "done" for t in filter(None, map(trainings.get, keys))))
    said, kept, *shown = tab.compare(keys)
    assert len(shown) == 3
    assert "same number of evaluations" in said
    assert kept == keys[:1]
    assert tab.compare([])[1] == []
    assert tab.compare(["../meanflow", "nothing"])[1] == []


def test_a_training_is_watched_and_found_again(tab: Distillation, trainings: Trainings) -> None:
    _, keys, *_ = tab.train(PLANE, ["hangs"], 1, 40, 0, *ADVANCED)
    training = trainings.get(keys[0])
    assert training is not None
    pictures = set()

    def look() -> bool:
        drawn, timer, stop, _ = tab.refresh(keys)
        assert timer["active"]
        assert stop["visible"]
        found = re.search(r'<img class="live"[^>]* data-step="(\d+)" src="(data:[^"]+)"', drawn)
        if found:
            pictures.add(found[2])
        return len(pictures) >= 2

    _until(look)
    # A page that is opened now shows what is in training.
    opened = tab.open(PLANE, ["meanflow"], [])
    assert opened[9] == keys
    assert 'data-student="hangs"' in opened[10]
    tab.stop(keys)
    _until(lambda: not training.is_live)
    assert "No picture was taken" not in tab.refresh(keys)[0]
    assert "stopped; the same again goes on" in tab.refresh(keys)[0]


def test_a_failure_says_why(tab: Distillation, trainings: Trainings) -> None:
    _, keys, *_ = tab.train(PLANE, ["wrong"], 1, 40, 0, *ADVANCED)
    failed = trainings.get(keys[0])
    assert failed is not None
    _until(lambda: failed.state == "failed")
    assert "does not go with this ground" in tab.refresh(keys)[0]


@pytest.mark.parametrize("ships", [True, False])
def test_toybox_shows_what_ships(
    tab: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ships: bool
) -> None:
    if ships:
        folder = tmp_path / "toybox-guided"
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        (folder / "README.md").write_text("# Card\n\nIt needs *one* pass <b>.\n\nMore.\n")
    for module in (shipped, shipped_students):
        monkeypatch.setattr(module, "shipped", lambda name: tmp_path / name)
    assert shipped.shipped_teachers() == ("toybox", "toybox-guided")[: 1 + ships]
    label = next(label for label, name in GROUNDS.items() if name == TOYBOX)
    live, other, *rest = tab.choose(label, ["meanflow"])
    assert (live["visible"], other["visible"], len(rest)) == (False, True, 4)
    said = tab.train(label, ["meanflow"], 1, 40, 0, *ADVANCED)[0]
    assert "give one on which students train" in said
    about = tab.shipped.describe()
    assert ("It needs one pass &lt;b&gt;." in about) is ships
    assert ("No student of the toybox teacher ships" in about) is not ships
    drawn = tab.shipped.compare("a red mushroom", 8, 0)
    assert drawn.count("<img") == (3 if ships else 2)
    assert "48 evaluations" in drawn
    assert "16 evaluations" in drawn
    assert ("8 evaluations: guidance is in its weights" in drawn) is ships
    assert "prompt is empty" in tab.shipped.compare(" ", 8, 0)
    assert "nothing known in" in tab.shipped.compare("a unicorn", 8, 0)


@pytest.mark.parametrize(
    ("ground", "first", "nfe", "steps", "named"),
    [
        ("nowhere", "meanflow", 1, 10, "ground"),
        (PLANE, "nothing", 1, 10, "no method"),
        (LINE, "guided", 2, 10, "guided needs class labels, and the ground mixture-1d has none"),
        (PLANE, "sid", 4, 10, "sid is meant for --nfe 1, not for 4"),
        (PLANE, "meanflow", 0, 10, "--nfe"),
        (PLANE, "meanflow", 1, 10**6, "steps"),
        (PLANE, "meanflow", "<b>", 10, "whole number"),
    ],
)
def test_what_cannot_be_trained_is_said(
    tab: Distillation, ground: str, first: str, nfe: Any, steps: int, named: str
) -> None:
    said, keys, *_ = tab.train(ground, [first], nfe, steps, 0, *ADVANCED)
    assert named in said
    assert "<b>" not in said
    assert keys == []
    assert "choose one to four methods" in tab.train(PLANE, [], 1, 10, 0, *ADVANCED)[0]


def test_what_can_be_trained_is_though_another_cannot(tab: Distillation) -> None:
    said, keys, *_ = tab.train(LINE, ["guided", "sid"], 1, 40, 0, *ADVANCED)
    assert said.count("guided needs class labels") == 1
    assert [key.split("-")[0] for key in keys] == ["sid"]


def test_the_queue_has_an_end(processes: Processes, tmp_path: Path) -> None:
    trainings = Trainings(processes, tmp_path / "students")

    def config(seed: int) -> DistillConfig:
        return DistillConfig(
            method="hangs", steps=4, seed=seed, picture_every=1.0, out=trainings.out
        )

    first = trainings.submit(config(0))
    _until(lambda: first.state == "training")
    waiting: list[Training] = [trainings.submit(config(n + 1)) for n in range(MOST_WAITING)]
    with pytest.raises(BadInput, match="waiting"):
        trainings.submit(config(99))
    assert trainings.submit(config(1)) is waiting[0]
    for training in (*waiting, first):
        training.stop.set()
    _until(lambda: all(t.state == "failed" for t in waiting))
    trainings.close()


def test_to_train_again_right_after_a_stop_is_no_part_of_what_was_stopped(
    processes: Processes, tmp_path: Path
) -> None:
    """The process takes a moment to end; whoever asks in this moment wants another."""
    trainings = Trainings(processes, tmp_path / "students")
    config = DistillConfig(method="hangs", steps=4, picture_every=1.0, out=trainings.out)
    first = trainings.submit(config)
    _until(lambda: first.state == "training")
    assert trainings.submit(config) is first
    first.stop.set()
    again = trainings.submit(config)
    assert again is not first
    assert trainings.submit(config) is again
    assert trainings.get(first.key) is again
    _until(lambda: again.state == "training")
    assert first.state == "failed"
    assert not again.stop.is_set()
    again.stop.set()
    _until(lambda: not again.is_live)
    trainings.close()


def test_a_server_that_comes_up_again_goes_on_with_who_trained_and_who_waited(
    tmp_path: Path,
) -> None:
    out = tmp_path / "students"

    def config(method: str, **fields: Any) -> DistillConfig:
        return DistillConfig(method=method, steps=4, picture_every=1.0, out=out, **fields)

    wanted = [config("hangs"), config("meanflow", seed=7), config("sid", learning_rate=5e-4)]
    first, given_up = Processes(tmp_path / "app.log", COMMAND), config("meanflow")
    trainings = Trainings(first, out)
    made = [trainings.submit(one) for one in [*wanted, given_up]]
    _until(lambda: made[0].state == "training")
    trainings.stop(made[3])
    # As it lies on the disk: a server that is killed says nothing more.
    killed = (out / QUEUE).read_bytes()
    trainings.close()
    first.close()
    _until(lambda: not any(training.is_live for training in made))
    assert (out / QUEUE).read_bytes() == killed

    second = Processes(tmp_path / "app.log", COMMAND)
    trainings = Trainings(second, out)
    again = trainings.live()
    assert [training.config for training in again] == wanted
    assert trainings.submit(wanted[1]) is again[1]
    _until(lambda: again[0].pictured is not None)
    assert again[1].state == "waiting"
    trainings.stop(again[0])
    _until(lambda: again[2].state == "done")
    assert (again[0].state, again[1].state) == ("failed", "done")
    _until(lambda: kept(out) == [])
    trainings.close()
    second.close()


def test_a_student_that_had_just_ended_is_not_trained_again(
    processes: Processes, tmp_path: Path
) -> None:
    trainings = Trainings(processes, tmp_path)
    done = trainings.submit(DistillConfig(method="sid", steps=4, picture_every=1.0, out=tmp_path))
    _until(lambda: done.state == "done" and kept(tmp_path) == [])
    trainings.close()
    made_at = (done.config.folder / "student.json").stat().st_mtime_ns
    keep(tmp_path, [done.config])
    trainings = Trainings(processes, tmp_path)
    _until(lambda: kept(tmp_path) == [])
    assert [training.state for training in trainings.made("mixture")] == ["done"]
    assert (done.config.folder / "student.json").stat().st_mtime_ns == made_at
    trainings.close()


def test_of_a_damaged_list_what_can_be_read_is_kept(tmp_path: Path) -> None:
    config = DistillConfig(method="sid", out=tmp_path)
    keep(tmp_path, [config, config])
    listed = json.loads((tmp_path / QUEUE).read_text())
    listed[0]["no_such_option"] = 1
    for text, found in (
        (json.dumps(listed), [config]),
        (json.dumps([3, None, {"method": "sid", "steps": 0}]), []),
        ("{", []),
        ("{}", []),
    ):
        (tmp_path / QUEUE).write_text(text)
        assert kept(tmp_path) == found
    assert kept(tmp_path / "nowhere") == []


def test_a_command_that_hangs_is_ended(processes: Processes, tmp_path: Path) -> None:
    words = ["distill", "hangs", "--teacher", "mixture", "--steps", "4", "--nfe", "1"]
    words += ["--batch", "8", "--learning-rate", "0.001", "--picture-every", "1"]
    with pytest.raises(CommandFailed, match="143"):
        processes.run([*words, "--seed", "0", "--out", str(tmp_path)], timeout_seconds=1.0)
    processes.close()
    with pytest.raises(CommandFailed, match="closed"):
        processes.run(words, timeout_seconds=1.0)


def test_the_grounds_are_those_of_the_program() -> None:
    with pytest.raises(ConfigError):
        DistillConfig(method="x", nfe=0)
    assert set(GROUNDS.values()) - {TOYBOX} == set(GROUND_HAS)
    assert {LINE, PLANE} <= set(GROUNDS)
