"""Captions of the toybox world: a small grammar with prefixes, synonyms and view words."""

from __future__ import annotations

import re

import numpy as np

from sds3d.toybox.colors import COLOR_SYNONYMS
from sds3d.toybox.kinds import KINDS
from sds3d.toybox.scenes import SceneSpec

# The prefixes that users of this field type out of habit.
PREFIXES: tuple[str, ...] = (
    "",
    "a photo of",
    "a DSLR photo of",
    "a 3D model of",
    "a 3D render of",
    "a rendering of",
    "a picture of",
    "an image of",
    "a high quality photo of",
    "a cartoon of",
)
TOY_WORDS: tuple[str, ...] = ("toy", "small", "little", "cute", "plastic", "shiny")
ON_WORDS: tuple[str, ...] = ("on", "on top of", "standing on", "sitting on")
VIEW_TEMPLATES: tuple[str, ...] = (", {} view", ", {} view", " from the {}", ", seen from the {}")
OVERHEAD_TEMPLATES: tuple[str, ...] = (", overhead view", ", top view", " from above")


def view_name(azimuth_deg: float, elevation_deg: float) -> str:
    """front, side, back or overhead: within 45 degrees of the axis, overhead above 60 degrees."""
    if elevation_deg > 60:
        return "overhead"
    away = abs((azimuth_deg + 180.0) % 360.0 - 180.0)
    return "front" if away < 45 else "back" if away > 135 else "side"


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


MASS: frozenset[str] = frozenset({"icing"})  # parts that take no article


def _with_part(part: str, color: str) -> str:
    colored = f"{color} {part}"
    return f" with {colored if part.endswith('s') or part in MASS else _article(colored)}"


def plain_caption(spec: SceneSpec) -> str:
    """The scene's caption in its simplest words: "a yellow duck on a red cube"."""
    text = _article(f"{spec.color} {spec.kind}")
    if spec.part is not None:
        text += _with_part(spec.part, str(spec.part_color))
    if spec.support is not None:
        text += f" on {_article(f'{spec.support_color} {spec.support}')}"
    return text


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def sample_caption(
    spec: SceneSpec, rng: np.random.Generator, *, view: tuple[float, float] | None
) -> str:
    """A random wording of the scene.

    Args:
        spec: What the scene shows.
        rng: Source of the wording.
        view: (azimuth_deg, elevation_deg) to be said in words, None to leave the view open.
    """
    kind = _pick(rng, KINDS[spec.kind].synonyms) if rng.uniform() < 0.4 else spec.kind
    color = _pick(rng, COLOR_SYNONYMS[spec.color]) if rng.uniform() < 0.3 else spec.color
    plain_kind = spec.part is None and spec.support is None
    words = [color] if not plain_kind or rng.uniform() < 0.96 else []
    if rng.uniform() < 0.25:
        words.insert(0, _pick(rng, TOY_WORDS))
    text = _article(" ".join([*words, kind]))
    if spec.part is not None and spec.part_color is not None:
        shade = (
            _pick(rng, COLOR_SYNONYMS[spec.part_color]) if rng.uniform() < 0.3 else spec.part_color
        )
        text += _with_part(spec.part, shade)
    if spec.support is not None and spec.support_color is not None:
        base = _pick(rng, KINDS[spec.support].synonyms) if rng.uniform() < 0.3 else spec.support
        text += f" {_pick(rng, ON_WORDS)} {_article(f'{spec.support_color} {base}')}"
    if rng.uniform() < 0.5:
        prefix = _pick(rng, PREFIXES)
        text = f"{prefix} {text}" if prefix else text
    if view is not None:
        name = view_name(*view)
        templates = OVERHEAD_TEMPLATES if name == "overhead" else VIEW_TEMPLATES
        text += _pick(rng, templates).format(name)
    return text


def vocabulary() -> list[str]:
    """Every word the grammar can produce, lower case, sorted; the tokenizer is made of these."""
    phrases = [*PREFIXES, *TOY_WORDS, *ON_WORDS, *VIEW_TEMPLATES, *OVERHEAD_TEMPLATES]
    phrases += ["a an the of with and", "front side back view"]
    for kind in KINDS.values():
        phrases += [*kind.synonyms, *kind.parts]
    for names in COLOR_SYNONYMS.values():
        phrases += names
    return sorted({w for p in phrases for w in re.findall(r"[a-z0-9]+|,", p.lower())})
