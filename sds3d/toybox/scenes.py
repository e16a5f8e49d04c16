"""Scenes of the toybox world: what stands there, in which colours, at which size.

A `SceneSpec` is what a caption can say; `build` draws the natural variation it leaves open and
brings the result to one size, so that every object fills the same sphere about the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sds3d.toybox.colors import COLOR_NAMES, COLORS
from sds3d.toybox.kinds import KIND_NAMES, KINDS, SUPPORTS
from sds3d.toybox.shapes import Solid, pack
from sds3d.toybox.tracer import RADIUS, signed_distance


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """What a caption can say of a scene.

    Attributes:
        kind, color: The object and its main colour.
        part, part_color: A named part with a second colour, both or neither.
        support, support_color: The kind it stands on, both or neither.
    """

    kind: str
    color: str
    part: str | None = None
    part_color: str | None = None
    support: str | None = None
    support_color: str | None = None

    def pairs(self) -> set[tuple[str, str]]:
        """Every (kind, colour) pair that occurs in the scene, as whole, part or support."""
        found = {(self.kind, self.color)}
        if self.part_color is not None:
            found.add((self.kind, self.part_color))
        if self.support is not None and self.support_color is not None:
            found.add((self.support, self.support_color))
        return found


def is_held_out(kind: str, color: str) -> bool:
    """Whether a (kind, colour) pair occurs nowhere in training: a fixed rule, 28 of 264 pairs.

    Each kind loses one colour, every fourth kind a second one; each colour is lost two or three
    times, so that every word is still seen in training.
    """
    k, c = KIND_NAMES.index(kind), COLOR_NAMES.index(color)
    first = (5 * k + k // 12 + 3) % 12
    second = (first + 7) % 12
    return c == first or (k % 4 == 1 and c == second)


HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (k, c) for k in KIND_NAMES for c in COLOR_NAMES if is_held_out(k, c)
)
TRAINING_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (k, c) for k in KIND_NAMES for c in COLOR_NAMES if not is_held_out(k, c)
)


def is_training_scene(spec: SceneSpec) -> bool:
    """Whether no pair of the scene is held out."""
    return not any(is_held_out(kind, color) for kind, color in spec.pairs())


def sample_training_spec(rng: np.random.Generator) -> SceneSpec:
    """A scene without held-out pairs: a fifth two-coloured, a fifth stacked."""
    while True:
        form = rng.uniform()
        spec = SceneSpec(
            kind=KIND_NAMES[rng.integers(len(KIND_NAMES))],
            color=COLOR_NAMES[rng.integers(len(COLOR_NAMES))],
        )
        if form < 0.2 and KINDS[spec.kind].parts:
            parts = KINDS[spec.kind].parts
            others = [c for c in COLOR_NAMES if c != spec.color]
            spec = replace(
                spec,
                part=parts[rng.integers(len(parts))],
                part_color=others[rng.integers(len(others))],
            )
        elif form > 0.8 and spec.kind not in SUPPORTS:
            others = [c for c in COLOR_NAMES if c != spec.color]
            spec = replace(
                spec,
                support=SUPPORTS[rng.integers(len(SUPPORTS))],
                support_color=others[rng.integers(len(others))],
            )
        if is_training_scene(spec):
            return spec


def _inside(solid: Solid) -> np.ndarray:
    """Points [N, 3] of a 32^3 grid that lie inside or within a fifth of a cell of it."""
    low = (solid.centers - solid.bounds[:, None]).min(0)
    high = (solid.centers + solid.bounds[:, None]).max(0)
    axes = [np.linspace(a, b, 32) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    distance = signed_distance(solid, grid)
    # A cell's centre closer than a fifth of its size counts as inside: thin parts would be missed.
    return grid[distance < 0.2 * float((high - low).max()) / 31]


def _single(kind: str, color: str, part: str | None, part_color: str | None,
            rng: np.random.Generator) -> Solid:  # fmt: skip
    parts = KINDS[kind].build(rng)
    if part is not None and part_color is not None:
        if all(p.name != part for p in parts):
            raise ValueError(f"a {kind} has no part {part!r}; it has {KINDS[kind].parts}")
        parts = [replace(p, color=COLORS[part_color]) if p.name == part else p for p in parts]
    return pack(parts, COLORS[color])


def build(spec: SceneSpec, rng: np.random.Generator) -> Solid:
    """The scene's solid: centred at the origin, circumscribed by the sphere of radius `RADIUS`.

    The sphere is that about the bounding box's middle through the most distant surface point, up
    to a grid's accuracy (about 2 %).
    """
    solid = _single(spec.kind, spec.color, spec.part, spec.part_color, rng)
    if spec.support is not None and spec.support_color is not None:
        support = KINDS[spec.support]
        assert support.support_top is not None
        inside = _inside(solid)
        low, high = inside.min(0), inside.max(0)
        # The rider covers most of the support and never overhangs by much.
        width = max(high[0] - low[0], high[2] - low[2])
        scale = min(1.9 * support.support_half_width / width, 1.15 / (high[1] - low[1]))
        middle = (low + high) / 2
        rider = solid.transformed(scale, np.array([-middle[0], -low[1], -middle[2]]))
        rider = rider.transformed(1.0, np.array([0.0, support.support_top - 0.01, 0.0]))
        base = pack(support.build(rng), COLORS[spec.support_color])
        solid = base.joined(rider)
    inside = _inside(solid)
    middle = (inside.min(0) + inside.max(0)) / 2
    radius = 1.02 * float(np.linalg.norm(inside - middle, axis=1).max())
    return solid.transformed(RADIUS / radius, -middle)
