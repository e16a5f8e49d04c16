"""Which prompts an evaluation asks, and what they are told apart from."""

from collections import Counter

import pytest

from sds3d.evaluate.prompts import distractors, draw_prompts, form_of, plain_candidates
from sds3d.toybox.scenes import is_held_out, is_training_scene


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_is_held_out_and_a_quarter_composed(count: int, seed: int) -> None:
    asked = draw_prompts(count, seed)
    assert len({one.prompt for one in asked}) == count
    assert sum(one.held_out for one in asked) == count // 2
    assert sum(one.form != "one colour" for one in asked) >= count / 4


def test_forty_prompts_hold_as_many_of_each_form_among_trained_and_held_out() -> None:
    forms = Counter((one.form, one.held_out) for one in draw_prompts(40, 7))
    assert forms["two colours", True] + forms["two colours", False] == 5
    assert forms["stacked", True] + forms["stacked", False] == 5
    assert min(forms.values()) >= 2
    assert len(forms) == 6


def test_only_the_main_pair_of_a_held_out_prompt_is_held_out() -> None:
    for one in (p for seed in range(5) for p in draw_prompts(40, seed)):
        main = (one.spec.kind, one.spec.color)
        assert is_held_out(*main) == one.held_out, one.prompt
        assert not any(is_held_out(*pair) for pair in one.spec.pairs() - {main}), one.prompt
        assert is_training_scene(one.spec) != one.held_out


def test_the_seed_decides() -> None:
    assert draw_prompts(20, 3) == draw_prompts(20, 3)
    assert draw_prompts(20, 3) != draw_prompts(20, 4)


def test_a_world_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        draw_prompts(3000, 0)


def test_distractors_swap_colors_and_objects_and_are_never_the_prompt() -> None:
    plain = plain_candidates()
    assert len(set(plain)) == len(plain) == 22 * 12
    composed = 0
    for one in (p for seed in range(5) for p in draw_prompts(40, seed)):
        spec, others = one.spec, distractors(one.spec, 0)
        assert spec not in others
        assert len(set(others)) == len(others)
        if one.form == "one colour":
            assert others == []
            continue
        composed += 1
        second = spec.part_color or spec.support_color
        swapped = [s for s in others if form_of(s) == one.form]
        assert any(
            s.kind == spec.kind
            and s.color == second
            and (s.part_color or s.support_color) == spec.color
            for s in swapped
        )
        assert any(s.kind != spec.kind and s.color == spec.color for s in swapped)
        if one.form == "stacked":
            assert any(s.support != spec.support for s in swapped)
    assert composed == 50
