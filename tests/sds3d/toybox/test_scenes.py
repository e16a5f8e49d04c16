"""What the teacher is trained on and what is kept from it."""

from collections import Counter

import numpy as np
import pytest

from sds3d.toybox.colors import COLOR_NAMES, COLORS
from sds3d.toybox.kinds import KIND_NAMES, KINDS, SUPPORTS
from sds3d.toybox.scenes import (
    HELD_OUT_PAIRS,
    TRAINING_PAIRS,
    SceneSpec,
    build,
    is_held_out,
    is_training_scene,
    sample_training_spec,
)
from sds3d.toybox.tracer import RADIUS, signed_distance

SPECS = [sample_training_spec(np.random.default_rng([3, i])) for i in range(6000)]


def test_a_tenth_of_the_pairs_is_held_out_and_the_rest_trained() -> None:
    everything = {(k, c) for k in KIND_NAMES for c in COLOR_NAMES}
    assert set(HELD_OUT_PAIRS) | set(TRAINING_PAIRS) == everything
    assert not set(HELD_OUT_PAIRS) & set(TRAINING_PAIRS)
    assert len(HELD_OUT_PAIRS) >= 0.1 * len(everything)


def test_every_kind_and_color_is_held_out_somewhere_and_trained_mostly() -> None:
    kinds = Counter(kind for kind, _ in HELD_OUT_PAIRS)
    colors = Counter(color for _, color in HELD_OUT_PAIRS)
    assert set(kinds) == set(KIND_NAMES)
    assert max(kinds.values()) <= 2
    assert set(colors) == set(COLOR_NAMES)
    assert max(colors.values()) <= 3


def test_no_held_out_pair_occurs_in_training_as_whole_part_or_support() -> None:
    seen = set()
    for spec in SPECS:
        seen.add((spec.kind, spec.color))
        if spec.part is not None:
            seen.add((spec.kind, spec.part_color))
        if spec.support is not None:
            seen.add((spec.support, spec.support_color))
    assert not seen & set(HELD_OUT_PAIRS)
    assert seen == set(TRAINING_PAIRS), "some training pair is hardly ever drawn"


def test_training_still_sees_every_kind_color_part_and_support() -> None:
    assert {s.kind for s in SPECS} == set(KIND_NAMES)
    assert {s.color for s in SPECS} == set(COLOR_NAMES)
    assert {s.part_color for s in SPECS} - {None} == set(COLOR_NAMES)
    parts = {(s.kind, s.part) for s in SPECS if s.part}
    assert parts == {(kind.name, part) for kind in KINDS.values() for part in kind.parts}
    assert {s.support for s in SPECS} - {None} == set(SUPPORTS)
    stacked = sum(s.support is not None for s in SPECS) / len(SPECS)
    two_colored = sum(s.part is not None for s in SPECS) / len(SPECS)
    assert 0.1 < stacked < 0.25
    assert 0.1 < two_colored < 0.25


def test_a_scene_with_one_held_out_pair_is_not_trained() -> None:
    kind, color = next((k, c) for k, c in HELD_OUT_PAIRS if KINDS[k].parts)
    free = next(c for c in COLOR_NAMES if not is_held_out(kind, c))
    part = KINDS[kind].parts[0]
    assert not is_training_scene(SceneSpec(kind=kind, color=color))
    whole = SceneSpec(kind=kind, color=free)
    assert is_training_scene(whole)
    assert not is_training_scene(SceneSpec(kind=kind, color=free, part=part, part_color=color))
    support, held = next((k, c) for k, c in HELD_OUT_PAIRS if k in SUPPORTS)
    assert not is_training_scene(
        SceneSpec(kind=kind, color=free, support=support, support_color=held)
    )


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_kind_fills_the_sphere_and_stays_in_it(kind: str) -> None:
    axis = np.linspace(-1.1, 1.1, 72)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    for variation in range(3):
        solid = build(SceneSpec(kind=kind, color="red"), np.random.default_rng(variation))
        inside = grid[signed_distance(solid, grid) < 0]
        radius = np.linalg.norm(inside, axis=1)
        # The tracer looks no further than 1.06 times the radius: all but a propeller's tip.
        assert (radius > 1.06 * RADIUS).mean() < 0.002
        assert 0.8 * RADIUS < radius.max() < 1.1 * RADIUS
        middle = (inside.min(0) + inside.max(0)) / 2
        assert np.abs(middle).max() < 0.09


def test_a_scene_is_its_random_numbers() -> None:
    spec = SceneSpec(kind="duck", color="yellow", support="cube", support_color="red")
    one, same, other = (build(spec, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for a, b in zip(one.arrays(), same.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one.arrays(), other.arrays(), strict=True))


def test_a_second_color_goes_to_its_part_and_to_nothing_else() -> None:
    plain = build(SceneSpec(kind="chair", color="blue"), np.random.default_rng(1))
    spec = SceneSpec(kind="chair", color="blue", part="legs", part_color="white")
    two = build(spec, np.random.default_rng(1))
    changed = (plain.colors != two.colors).any(1)
    assert changed.sum() == 4
    assert (two.colors[changed] == COLORS["white"]).all()
    np.testing.assert_array_equal(plain.centers, two.centers)


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    spec = SceneSpec(kind="chair", color="blue", part="wings", part_color="white")
    with pytest.raises(ValueError, match="legs"):
        build(spec, np.random.default_rng(0))


def test_a_rider_stands_on_its_support() -> None:
    spec = SceneSpec(kind="duck", color="yellow", support="cube", support_color="red")
    solid = build(spec, np.random.default_rng(0))
    red = (solid.colors == COLORS["red"]).all(1)
    yellow = (solid.colors == COLORS["yellow"]).all(1)
    assert red.sum() == 1
    top = solid.centers[red][0, 1] + solid.sizes[red][0, 1]
    assert (solid.centers[yellow][:, 1] > top).all()
