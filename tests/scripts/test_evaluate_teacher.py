"""The judge of a teacher's pictures, on the world's own: what is right, each way to be wrong."""

from dataclasses import replace

import numpy as np
import pytest

import evaluate_teacher as script
from evaluate_teacher import (
    Answer,
    Request,
    background,
    draw_requests,
    exact_pictures,
    figures,
    judge,
    prompt_of,
    table,
)
from sds3d.evaluate.layers import TEACHER_FRAME, exact_views
from sds3d.evaluate.matching import BETWEEN_DEG
from sds3d.evaluate.references import References
from sds3d.toybox.colors import COLOR_NAMES
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, is_held_out

KINDS = ("duck", "car", "mug")
GROUNDS = ((1.0, 1.0, 1.0), (0.2, 0.55, 0.3))


@pytest.fixture(scope="module")
def references() -> References:
    return References(None, frame=TEACHER_FRAME, variations=1, threads=2)


@pytest.fixture(autouse=True)
def _few_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kinds to choose from take seconds to render instead of minutes."""
    monkeypatch.setattr(script, "KIND_NAMES", KINDS)


def request_of(kind: str, color: str, azimuth_deg: float) -> Request:
    spec = SceneSpec(kind=kind, color=color)
    return Request(spec=spec, azimuth_deg=azimuth_deg, held_out=is_held_out(kind, color))


def picture(request: Request, ground: tuple[float, ...]) -> np.ndarray:
    """The reference's own variation, from between the references' sides."""
    azimuth = np.array([request.azimuth_deg])
    rgba = exact_views(request.spec, 0, azimuth, frame=TEACHER_FRAME)[0]
    return rgba[..., :3] + (1.0 - rgba[..., 3:]) * np.array(ground)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_picture_is_right_on_any_background(
    references: References, kind: str, ground: tuple[float, ...]
) -> None:
    for color, i in (("red", 1), ("blue", 7), ("green", 18)):
        asked = request_of(kind, color, float(BETWEEN_DEG[i]))
        image = picture(asked, ground)
        np.testing.assert_allclose(background(image), ground, atol=1e-6)
        right = Answer(kind=True, color=True, azimuth=True, view=True)
        assert judge(image, asked, references, True) == right
        # Where exact renders do not tell the side, nobody is asked for it.
        assert judge(image, asked, references, False) == replace(right, azimuth=None, view=None)


@pytest.mark.parametrize("ground", GROUNDS)
def test_what_was_not_asked_for_is_wrong_in_just_that(
    references: References, ground: tuple[float, ...]
) -> None:
    shown = request_of("duck", "blue", float(BETWEEN_DEG[4]))
    image = picture(shown, ground)
    other_color = replace(shown, spec=SceneSpec(kind="duck", color="red"))
    assert judge(image, other_color, references, False) == Answer(
        kind=True, color=False, azimuth=None, view=None
    )
    other_kind = replace(shown, spec=SceneSpec(kind="car", color="blue"))
    assert judge(image, other_kind, references, False) == Answer(
        kind=False, color=True, azimuth=None, view=None
    )


@pytest.mark.parametrize(
    ("turned_deg", "right", "view"),
    [
        (-45, False, True),
        (-15, True, True),
        (15, True, True),
        (45, False, False),
        (180, False, False),
    ],
)
def test_a_side_is_right_within_30_degrees_around_the_circle(
    references: References, turned_deg: float, right: bool, view: bool
) -> None:
    # Near the front, so that what is asked for lies on the other side of 0 degrees.
    shown = request_of("car", "red", 7.5)
    asked = replace(shown, azimuth_deg=(shown.azimuth_deg + turned_deg) % 360.0)
    answer = judge(picture(shown, GROUNDS[1]), asked, references, True)
    assert answer == Answer(kind=True, color=True, azimuth=right, view=view)


def test_a_view_is_named_where_the_teacher_takes_no_camera() -> None:
    names = {}
    for azimuth in (7.5, 97.5, 187.5, 277.5, 352.5):
        asked = request_of("car", "red", azimuth)
        assert prompt_of(asked, in_words=False) == "a red car"
        names[azimuth] = prompt_of(asked, in_words=True).removeprefix("a red car, ")
    assert list(names.values()) == [
        "front view",
        "side view",
        "back view",
        "side view",
        "front view",
    ]


def test_every_kind_is_asked_for_equally_often_and_half_of_it_held_out() -> None:
    requests = draw_requests(4, 0)
    assert [one.spec.kind for one in requests] == [kind for kind in KINDS for _ in range(4)]
    assert [one.held_out for one in requests] == [False, True] * (2 * len(KINDS))
    for one in requests:
        assert is_held_out(one.spec.kind, one.spec.color) == one.held_out
        assert one.spec.color in COLOR_NAMES
        assert one.azimuth_deg in BETWEEN_DEG
    assert draw_requests(4, 0) == requests
    assert draw_requests(4, 1) != requests


def test_the_ceiling_shows_what_was_asked_for_on_plain_backgrounds() -> None:
    requests = [request_of(kind, "red", 97.5) for kind in KINDS]
    images = list(exact_pictures(requests, 0))
    assert len(images) == len(requests)
    grounds = np.stack([background(image) for image in images])
    assert len(np.unique(grounds.round(6), axis=0)) == len(requests)
    for image, ground in zip(images, grounds, strict=True):
        covered = np.abs(image - ground).max(-1) > 0.05
        assert 0.1 < covered.mean() < 0.7
    for one, other in zip(images, exact_pictures(requests, 0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_figures_are_shares_of_what_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        Request(spec=SceneSpec(kind=kind, color="red"), azimuth_deg=7.5, held_out=held_out)
        for kind, held_out in (("duck", False), ("duck", True), ("mug", False), ("mug", True))
    ]
    answers = [
        Answer(kind=True, color=True, azimuth=True, view=True),
        Answer(kind=True, color=False, azimuth=False, view=True),
        Answer(kind=False, color=True, azimuth=None, view=None),
        Answer(kind=False, color=True, azimuth=None, view=None),
    ]
    found = figures(requests, answers)
    assert found["all"] == {
        "samples": 4,
        "kind_accuracy": 0.5,
        "color_accuracy": 0.75,
        "both_accuracy": 0.25,
        "azimuth_accuracy": 0.5,
        "view_accuracy": 1.0,
    }
    assert found["training_pairs"]["color_accuracy"] == 1.0
    assert found["held_out_pairs"]["both_accuracy"] == 0.0
    assert found["kinds"]["duck"]["kind_accuracy"] == 1.0
    assert found["kinds"]["mug"]["azimuth_accuracy"] is None
    assert found["kinds"]["car"]["samples"] == 0
    lines = table({"seed": 0, "exact": found}).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["all"] == ["50", "%", "75", "%", "50", "%", "100", "%"]
    assert rows["mug"] == ["0", "%", "100", "%", "-", "-"]
    assert list(rows) == ["all", "training_pairs", "held_out_pairs", *KINDS]
    monkeypatch.setattr(script, "KIND_NAMES", KIND_NAMES)
    assert set(figures(requests, answers)["kinds"]) == set(KIND_NAMES)
