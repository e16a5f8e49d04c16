"""The tab of students: choosing by the taxonomy, training in processes, comparing."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sds3d.distill.run import DistillConfig
from sds3d.errors import BadInput, ConfigError
from sds3d.ui.distillation import NONE, Distillation
from sds3d.ui.processes import CommandFailed, Processes
from sds3d.ui.taxonomy import ANY, GROUNDS, Catalogue, card_html
from sds3d.ui.trainings import MOST_WAITING, Training, Trainings

PLANE, LINE = "six modes on a circle (2D)", "two modes on a line (1D)"


def _card(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.title(),
        "family": "path",
        "student": "flow map",
        "needs": ["a teacher"],
        "nfe": [1, 2],
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


def test_the_real_catalogue_fills_the_tab() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "sds3d.cli", "methods", "--json"],
        capture_output=True,
        check=True,
        text=True,
    )
    cards = json.loads(listed.stdout)
    assert len(cards) > 10
    assert all(card["idea"] in card_html(card).replace("&#x27;", "'") for card in cards[:1])
    assert {"name", "family", "student", "needs", "nfe", "equation"} <= set(cards[0])


def test_the_taxonomy_narrows_the_choice(catalogue: Catalogue, tab: Distillation) -> None:
    assert catalogue.families() == ["path", "generator"]
    names = [card["name"] for card in catalogue.chosen("generator", ANY, "mixture")]
    assert names == ["sid"]
    on_a_line = [card["name"] for card in catalogue.chosen(ANY, ANY, "mixture-1d")]
    assert "guided" not in on_a_line
    first, second, *_ = tab.choose("generator", ANY, PLANE, "meanflow", "guided")
    assert (first["value"], second["value"]) == ("sid", NONE)
    *_, nfe = tab.cards("meanflow", "guided")
    assert (nfe["choices"], nfe["value"]) == ([2], 2)


def test_a_card_escapes_and_links(catalogue: Catalogue) -> None:
    drawn = card_html(catalogue.find("meanflow"))
    assert "An &lt;idea&gt;." in drawn
    assert 'href="https://arxiv.org/abs/2505.13447"' in drawn
    assert card_html(None) == ""


def test_two_students_are_trained_and_compared(tab: Distillation, trainings: Trainings) -> None:
    said, keys, *_ = tab.train(PLANE, "meanflow", "sid", 1, 40, 0)
    assert said == ""
    assert len(keys) == 2
    states = [trainings.get(key) for key in keys]
    _until(lambda: all(t is not None and t.state == "done" for t in states))
    drawn, timer, _ = tab.refresh(keys)
    assert timer["active"] is False
    for key in keys:
        assert f"/students/{key}/samples.png" in drawn
    assert "<td class=best>0.1</td><td>0.2</td>" in drawn
    first = trainings.get(keys[0])
    assert first is not None
    assert first.losses["student"][0] == 1.0
    # What is there is not trained again, also by a server that never heard of it.
    anew = Trainings(tab.trainings._processes, trainings.out)
    assert anew.submit(first.config).state == "done"
    anew.close()


def test_a_failure_says_why_and_a_stop_ends_the_process(
    tab: Distillation, trainings: Trainings
) -> None:
    _, keys, *_ = tab.train(PLANE, "wrong", NONE, 1, 40, 0)
    failed = trainings.get(keys[0])
    assert failed is not None
    _until(lambda: failed.state == "failed")
    assert "does not go with this ground" in tab.refresh(keys)[0]
    _, keys, *_ = tab.train(PLANE, "hangs", NONE, 1, 40, 0)
    hanging = trainings.get(keys[0])
    assert hanging is not None
    _until(lambda: bool(hanging.losses))
    tab.stop(keys)
    _until(lambda: hanging.state == "failed")
    assert "stopped" in hanging.reason


@pytest.mark.parametrize(
    ("ground", "first", "nfe", "steps", "named"),
    [
        ("nowhere", "meanflow", 1, 10, "ground"),
        (PLANE, "nothing", 1, 10, "no method"),
        (PLANE, "meanflow", 0, 10, "--nfe"),
        (PLANE, "meanflow", 1, 10**6, "steps"),
        (PLANE, "meanflow", "<b>", 10, "whole number"),
    ],
)
def test_what_cannot_be_trained_is_said(
    tab: Distillation, ground: str, first: str, nfe: Any, steps: int, named: str
) -> None:
    said, keys, *_ = tab.train(ground, first, NONE, nfe, steps, 0)
    assert named in said
    assert "<b>" not in said
    assert keys == []


def test_the_queue_has_an_end(processes: Processes, tmp_path: Path) -> None:
    trainings = Trainings(processes, tmp_path / "students")

    def config(seed: int) -> DistillConfig:
        return DistillConfig(method="hangs", steps=4, seed=seed, out=trainings.out)

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


def test_a_command_that_hangs_is_ended(processes: Processes, tmp_path: Path) -> None:
    words = ["distill", "hangs", "--teacher", "mixture", "--steps", "4", "--nfe", "1"]
    with pytest.raises(CommandFailed, match="143"):
        processes.run([*words, "--seed", "0", "--out", str(tmp_path)], timeout_seconds=1.0)
    processes.close()
    with pytest.raises(CommandFailed, match="closed"):
        processes.run(words, timeout_seconds=1.0)


def test_the_grounds_are_those_of_the_program() -> None:
    with pytest.raises(ConfigError):
        DistillConfig(method="x", nfe=0)
    assert set(GROUNDS.values()) == {"mixture", "mixture-1d", "digits"}
    assert LINE in GROUNDS
