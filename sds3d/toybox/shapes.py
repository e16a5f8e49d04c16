"""Signed-distance parts: what a toy is made of, as data that the tracer's kernels read.

A part is one primitive with a pose, a name and a colour. All primitives are centred at their own
origin with +Y as their axis. Distances are lower bounds with Lipschitz constant at most about 1
and an exact zero set, which is what sphere tracing and iso-surfacing need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np


class Primitive(IntEnum):
    """The primitives and the meaning of their four size parameters."""

    ELLIPSOID = 0  # rx, ry, rz
    BOX = 1  # half x, half y, half z, rounding radius (inside the half sizes)
    ROUND_CONE = 2  # radius at bottom, radius at top, distance between the two centres
    CYLINDER = 3  # radius, half height, rounding radius
    CONE = 4  # radius at bottom, radius at top, half height, rounding radius
    TORUS = 5  # ring radius, tube radius
    DOME = 6  # rx, ry, rz: the half y >= 0 of an ellipsoid
    CUP = 7  # outer radius, half height, wall thickness: open at the top
    PRISM = 8  # half width, height, half depth, rounding: a gable roof standing on y = 0
    HULL = 9  # half width, height, half length, taper: a boat's hull, open side up


@dataclass(frozen=True, kw_only=True)
class Part:
    """One primitive of a toy.

    Attributes:
        name: The part's name in captions ("legs", "roof"); the toy's own colour goes to "main".
        primitive: Which signed distance.
        size: Up to four lengths, see `Primitive`.
        center: Position of the primitive's origin.
        rotation: 3x3 matrix from the primitive's frame to the toy's.
        color: sRGB in [0, 1], or None for the colour named in the caption.
        blend: Radius of the smooth union with the parts before it, 0 for a plain union.
    """

    name: str
    primitive: Primitive
    size: tuple[float, ...]
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    color: tuple[float, float, float] | None = None
    blend: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Solid:
    """Parts packed for the kernels; n parts.

    Attributes:
        primitives: int64 [n].
        sizes: float64 [n, 4].
        centers: float64 [n, 3].
        rotations: float64 [n, 3, 3], from the part's frame to the world's.
        colors: float64 [n, 3], sRGB in [0, 1].
        blends: float64 [n].
        bounds: float64 [n], radius of a sphere about the centre that holds the part.
    """

    primitives: np.ndarray
    sizes: np.ndarray
    centers: np.ndarray
    rotations: np.ndarray
    colors: np.ndarray
    blends: np.ndarray
    bounds: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order in which the kernels take them."""
        return (
            self.primitives,
            self.sizes,
            self.centers,
            self.rotations,
            self.colors,
            self.blends,
            self.bounds,
        )

    def transformed(self, scale: float, offset: np.ndarray) -> Solid:
        """The solid moved by `offset`, then scaled by `scale` about the origin."""
        return Solid(
            primitives=self.primitives,
            sizes=self.sizes * scale,
            centers=(self.centers + offset) * scale,
            rotations=self.rotations,
            colors=self.colors,
            blends=self.blends * scale,
            bounds=self.bounds * scale,
        )

    def joined(self, other: Solid) -> Solid:
        """Both solids as one."""
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        names = ("primitives", "sizes", "centers", "rotations", "colors", "blends", "bounds")
        return Solid(**{name: np.concatenate(p) for name, p in zip(names, pairs, strict=True)})


def rotation(*, x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> np.ndarray:
    """R_y R_x R_z, angles in degrees, right-handed."""
    x, y, z = np.radians([x_deg, y_deg, z_deg])
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return ry @ rx @ rz


def _bound(part: Part) -> float:
    """Radius about the part's centre that holds it."""
    s = [*part.size, 0.0, 0.0, 0.0, 0.0]
    match part.primitive:
        case Primitive.ELLIPSOID | Primitive.DOME:
            return max(s[:3])
        case Primitive.BOX:
            return float(np.linalg.norm(s[:3]))
        case Primitive.ROUND_CONE:
            return max(s[0], s[2] + s[1])
        case Primitive.CYLINDER | Primitive.CUP:
            return float(np.hypot(s[0], s[1]))
        case Primitive.CONE:
            return float(np.hypot(max(s[0], s[1]), s[2]))
        case Primitive.TORUS:
            return s[0] + s[1]
        case Primitive.PRISM | Primitive.HULL:
            return float(np.linalg.norm(s[:3]))


def pack(parts: list[Part], main_color: tuple[float, float, float]) -> Solid:
    """Pack parts for the kernels; parts without a colour of their own take `main_color`."""
    sizes = np.zeros((len(parts), 4))
    for row, part in zip(sizes, parts, strict=True):
        row[: len(part.size)] = part.size
    return Solid(
        primitives=np.array([int(p.primitive) for p in parts], np.int64),
        sizes=sizes,
        centers=np.array([p.center for p in parts], np.float64),
        rotations=np.array([p.rotation for p in parts], np.float64),
        colors=np.array([main_color if p.color is None else p.color for p in parts], np.float64),
        blends=np.array([p.blend for p in parts], np.float64),
        bounds=np.array([_bound(p) for p in parts], np.float64) * 1.001,
    )
