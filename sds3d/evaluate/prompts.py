"""Which prompts are asked, and what each is told apart from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sds3d.toybox.captions import plain_caption
from sds3d.toybox.colors import COLOR_NAMES
from sds3d.toybox.kinds import KIND_NAMES, KINDS, SUPPORTS
from sds3d.toybox.scenes import HELD_OUT_PAIRS, SceneSpec, is_held_out, is_training_scene

Form = Literal["one colour", "two colours", "stacked"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt of an evaluation.

    Attributes:
        spec: What it asks for.
        held_out: Whether its (kind, colour) pair occurs nowhere in the teacher's training.
    """

    spec: SceneSpec
    held_out: bool

    @property
    def prompt(self) -> str:
        return plain_caption(self.spec)

    @property
    def form(self) -> Form:
        return form_of(self.spec)


def form_of(spec: SceneSpec) -> Form:
    if spec.support is not None:
        return "stacked"
    return "one colour" if spec.part is None else "two colours"


def draw_prompts(count: int, seed: int) -> list[Asked]:
    """`count` different prompts: every second one held out, at least a quarter composed.

    Composed prompts are two-coloured and stacked by turns. "Held out" is said of the main pair of
    kind and colour; every other pair of the prompt occurs in training. Raises ValueError where the
    world does not have so many different prompts.
    """
    rng = np.random.default_rng([seed, 104_729])
    asked: list[Asked] = []
    taken: set[SceneSpec] = set()
    attempts = 0
    while len(asked) < count:
        i = len(asked)
        held_out = i % 2 == 1
        form: Form = "one colour"
        if i % 8 < 2:
            form = "two colours" if (i + i // 8) % 2 == 0 else "stacked"
        spec = _draw(rng, form, held_out)
        if spec in taken:
            attempts += 1
            if attempts > 10_000:
                raise ValueError(f"the toybox world has no {count} different prompts")
            continue
        attempts = 0
        taken.add(spec)
        asked.append(Asked(spec=spec, held_out=held_out))
    return asked


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw(rng: np.random.Generator, form: Form, held_out: bool) -> SceneSpec:
    while True:
        if held_out:
            kind, color = HELD_OUT_PAIRS[int(rng.integers(len(HELD_OUT_PAIRS)))]
        else:
            kind, color = _pick(rng, KIND_NAMES), _pick(rng, COLOR_NAMES)
        spec = SceneSpec(kind=kind, color=color)
        second = _pick(rng, [c for c in COLOR_NAMES if c != color])
        if form == "two colours":
            if not KINDS[kind].parts:
                continue
            spec = replace(spec, part=_pick(rng, KINDS[kind].parts), part_color=second)
        elif form == "stacked":
            if kind in SUPPORTS:
                continue
            spec = replace(spec, support=_pick(rng, SUPPORTS), support_color=second)
        main = (kind, color)
        others_trained = not any(is_held_out(*pair) for pair in spec.pairs() - {main})
        if others_trained and (held_out or is_training_scene(spec)):
            return spec


def plain_candidates() -> list[SceneSpec]:
    """Every kind in every colour."""
    return [SceneSpec(kind=k, color=c) for k in KIND_NAMES for c in COLOR_NAMES]


def distractors(spec: SceneSpec, seed: int) -> list[SceneSpec]:
    """Scenes that differ from a composed one by swapped colours or objects, none equal to it.

    Two colours: both swapped, a third colour in the place of either, another kind with the same
    colours, and the kind in either colour alone. Stacked: colours swapped, a third in the place of
    either, another kind on top, the other support, and either thing alone. Empty for one colour.
    """
    if form_of(spec) == "one colour":
        return []
    rng = np.random.default_rng([seed, 15_485_863])
    second = spec.part_color or spec.support_color
    assert second is not None
    third = _pick(rng, [c for c in COLOR_NAMES if c not in (spec.color, second)])
    if spec.part is not None:
        other = _pick(rng, [k for k in KIND_NAMES if k != spec.kind and KINDS[k].parts])
        return [
            replace(spec, color=second, part_color=spec.color),
            replace(spec, part_color=third),
            replace(spec, color=third),
            replace(spec, kind=other, part=_pick(rng, KINDS[other].parts)),
            SceneSpec(kind=spec.kind, color=spec.color),
            SceneSpec(kind=spec.kind, color=second),
        ]
    assert spec.support is not None
    rider = _pick(rng, [k for k in KIND_NAMES if k != spec.kind and k not in SUPPORTS])
    return [
        replace(spec, color=second, support_color=spec.color),
        replace(spec, support_color=third),
        replace(spec, color=third),
        replace(spec, kind=rider),
        replace(spec, support=next(s for s in SUPPORTS if s != spec.support)),
        SceneSpec(kind=spec.kind, color=spec.color),
        SceneSpec(kind=spec.support, color=second),
    ]
