"""The grammar of the captions."""

import re

import numpy as np
import pytest

from sds3d.toybox.captions import plain_caption, sample_caption, view_name, vocabulary
from sds3d.toybox.colors import COLOR_SYNONYMS
from sds3d.toybox.kinds import KINDS
from sds3d.toybox.scenes import HELD_OUT_PAIRS, SceneSpec, sample_training_spec

WORDS = set(vocabulary())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+|,", text.lower())


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "name"),
    [
        (0, 0, "front"),
        (44, 0, "front"),
        (-44, 10, "front"),
        (316, 0, "front"),
        (46, 0, "side"),
        (90, 59, "side"),
        (270, 0, "side"),
        (134, 0, "side"),
        (136, 0, "back"),
        (180, -15, "back"),
        (224, 0, "back"),
        (540, 0, "back"),
        (0, 61, "overhead"),
        (180, 80, "overhead"),
    ],
)
def test_view_names(azimuth_deg: float, elevation_deg: float, name: str) -> None:
    assert view_name(azimuth_deg, elevation_deg) == name


def test_plain_captions() -> None:
    legs = SceneSpec(kind="chair", color="blue", part="legs", part_color="white")
    stem = SceneSpec(kind="mushroom", color="red", part="stem", part_color="orange")
    icing = SceneSpec(kind="cake", color="pink", part="icing", part_color="brown")
    duck = SceneSpec(kind="duck", color="orange", support="cube", support_color="red")
    assert plain_caption(SceneSpec(kind="mushroom", color="red")) == "a red mushroom"
    assert plain_caption(legs) == "a blue chair with white legs"
    assert plain_caption(stem) == "a red mushroom with an orange stem"
    assert plain_caption(icing) == "a pink cake with brown icing"
    assert plain_caption(duck) == "an orange duck on a red cube"


def test_captions_say_the_scene_in_known_words_only() -> None:
    views = 0
    for i in range(3000):
        rng = np.random.default_rng([11, i])
        spec = sample_training_spec(rng)
        view = (float(rng.uniform(0, 360)), float(rng.uniform(-20, 80)))
        text = sample_caption(spec, rng, view=view if i % 2 else None)
        words = _words(text)
        assert set(words) <= WORDS, text
        padded = f" {' '.join(words)} "
        assert any(f" {synonym} " in padded for synonym in KINDS[spec.kind].synonyms), text
        if spec.part is not None:
            assert f" {spec.part} " in padded, text
            assert any(f" {c} {spec.part} " in padded for c in COLOR_SYNONYMS[str(spec.part_color)])
        if spec.support is not None:
            synonyms = KINDS[spec.support].synonyms
            assert any(f" {spec.support_color} {s} " in padded for s in synonyms), text
        said = re.search(r"(front|side|back|overhead) view|from (the|above)|top view", text)
        assert (said is not None) == bool(i % 2), text
        views += said is not None
        # A vowel takes "an", everything else "a".
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
    assert views == 1500


def test_every_word_of_a_held_out_prompt_is_known_from_training() -> None:
    trained: set[str] = set()
    for i in range(4000):
        rng = np.random.default_rng([12, i])
        trained |= set(_words(sample_caption(sample_training_spec(rng), rng, view=None)))
    for kind, color in HELD_OUT_PAIRS:
        assert set(_words(plain_caption(SceneSpec(kind=kind, color=color)))) <= trained


def test_the_wording_is_its_random_numbers() -> None:
    spec = SceneSpec(kind="cat", color="gray", support="table", support_color="brown")

    def say(seed: int) -> str:
        return sample_caption(spec, np.random.default_rng(seed), view=(10.0, 0.0))

    assert [say(i) for i in range(20)] == [say(i) for i in range(20)]
    assert len({say(i) for i in range(20)}) > 10
