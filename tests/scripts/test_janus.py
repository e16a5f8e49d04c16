"""The Janus figures on the world's own shapes: exact, turned, and with a front on every side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import janus as script
from compare_methods import Made
from janus import NO_SIDES, SETTINGS, JanusConfig, Sides, exact_sides, options, sides, table
from sds3d.evaluate.layers import AZIMUTHS_DEG, Shape, color_weights, exact_views, pool
from sds3d.evaluate.matching import BETWEEN_DEG, azimuth_accuracy
from sds3d.evaluate.measure import Measured
from sds3d.evaluate.references import References
from sds3d.toybox.scenes import SceneSpec

DUCK = SceneSpec(kind="duck", color="yellow")
WEIGHTS = color_weights([("yellow", None)])


@pytest.fixture(scope="module")
def references() -> References:
    return References(None, variations=1, threads=2)


def views(turn_deg: float, fold: float = 360.0) -> np.ndarray:
    """The duck's views turned, and repeated after `fold` degrees."""
    azimuths = np.concatenate([AZIMUTHS_DEG, BETWEEN_DEG])
    folded = (azimuths + fold / 2) % fold - fold / 2
    return pool(exact_views(DUCK, 0, folded + turn_deg))


def test_an_exact_thing_has_one_front_and_every_side_right(references: References) -> None:
    found = sides(references(Shape.of(DUCK)), WEIGHTS, views(0))
    assert found == Sides(azimuth=1.0, turned=1.0, fronts=0.0)


def test_a_turned_thing_is_right_at_its_best_turn(references: References) -> None:
    found = sides(references(Shape.of(DUCK)), WEIGHTS, views(90))
    assert found.azimuth == 0.0
    assert found.turned == 1.0


def test_two_fronts_are_told_from_a_turned_one(references: References) -> None:
    found = sides(references(Shape.of(DUCK)), WEIGHTS, views(0, fold=180.0))
    assert found.turned < 0.75
    # Of 45 to 315 degrees, those behind show what belongs 180 degrees away.
    assert 1 / 7 <= found.fronts < 1


def test_the_two_ends_are_at_the_ends(references: References) -> None:
    exact, everywhere = exact_sides(DUCK, references)
    assert (exact.azimuth, exact.fronts) == (1.0, 0.0)
    assert everywhere.fronts == 1.0
    assert everywhere.azimuth <= 0.25
    assert everywhere.turned <= 0.25


def test_azimuth_is_the_evaluation_s(references: References) -> None:
    reference, shown = references(Shape.of(DUCK)), views(30)
    between = shown[len(AZIMUTHS_DEG) :]
    found = sides(reference, WEIGHTS, shown)
    assert found.azimuth == azimuth_accuracy(reference, WEIGHTS, between, BETWEEN_DEG)


def test_settings_differ_by_the_camera_and_the_words_for_views() -> None:
    config = JanusConfig(guidance_scale=7.0)
    teachers = {name: script.teacher_of(config, name) for name in SETTINGS}
    assert teachers.pop("camera") == "toybox"
    assert set(teachers.values()) == {"toybox-words"}
    told = {name: options(config, name) for name in SETTINGS}
    assert {one.guidance_scale for one in told.values()} == {7.0}
    assert [one.camera_conditioning for one in told.values()] == [False, False, False, True]
    assert told["no words"].view_prompts == told["camera"].view_prompts == "none"
    assert told["view prompts"].view_prompts == told["Perp-Neg"].view_prompts != "none"
    assert [one.perp_neg for one in told.values()] == [False, False, True, False]


def test_a_run_without_a_mesh_is_a_miss(references: References) -> None:
    missing = Made(measured=Measured(problem="empty"), folder=None)
    assert script.sides_of(missing, DUCK, references) == NO_SIDES


def test_the_table_is_of_means_with_both_ends_below() -> None:
    right = Made(
        measured=Measured(retrieved=True, silhouette_iou=0.9, nearest="a yellow duck"),
        folder=Path("run"),
    )
    wrong = Made(measured=Measured(silhouette_iou=0.5, nearest="a car"), folder=None)
    half = Sides(azimuth=0.5, turned=0.75, fronts=0.25)
    rows: dict[Any, Any] = {"camera": [None], "no words": [(right, half), None, (wrong, NO_SIDES)]}
    one, every = Sides(azimuth=1.0, turned=1.0, fronts=0.0), NO_SIDES
    lines = table(rows, [(one, every)]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| no words | 25% | 38% | 62% | 1 of 2 | 0.70 |"
    assert lines[3] == "| *exact renders* | 100% | 100% | 0% | | |"
    assert lines[4] == "| *their front on every side* | 0% | 0% | 100% | | |"


def test_gains_are_paired_and_of_whole_settings_alone() -> None:
    config = JanusConfig(prompts=("yellow duck", "red car"), seeds=(0, 1))
    made = Made(measured=Measured(), folder=None)

    def cells(*turned: float) -> list[Any]:
        return [(made, Sides(azimuth=0.5, turned=one, fronts=0.25)) for one in turned]

    # Seeds are the outer order, prompts the inner: the duck gains 20 and 40, the car 0 and 20.
    rows: dict[Any, Any] = {
        "no words": cells(0.1, 0.5, 0.2, 0.6),
        "view prompts": cells(0.3, 0.5, 0.6, 0.8),
        "Perp-Neg": [*cells(1.0, 1.0, 1.0), None],
    }
    lines = script.gains(config, rows).splitlines()
    assert lines[0].startswith("| beside no words")
    # Whole prompts are drawn, so that the interval ends at either's own mean.
    assert lines[2:] == ["| view prompts | +0 [+0, +0] | +20 [+10, +30] | +0 [+0, +0] |"]
    assert script.gains(config, {"no words": rows["no words"]}) == ""
