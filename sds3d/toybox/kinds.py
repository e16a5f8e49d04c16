"""The kinds of toys: each a function from random numbers to named signed-distance parts.

Toys stand on +Y, look toward +Z and are mirror-symmetric about x = 0 except where the real thing
is not (a mug's handle points to +X). Sizes here are free: `scenes` brings every toy to one size.
A part named "main" takes the colour of the caption; any other name can be given a second colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sds3d.toybox.shapes import Part, Primitive, rotation

Rng = np.random.Generator
Color = tuple[float, float, float]

CREAM: Color = (0.96, 0.91, 0.80)
WOOD: Color = (0.62, 0.42, 0.24)
DARK: Color = (0.10, 0.10, 0.11)
SNOW: Color = (0.96, 0.96, 0.97)
BEAK: Color = (0.98, 0.55, 0.08)
GLASS: Color = (0.66, 0.86, 0.96)
STEEL: Color = (0.70, 0.71, 0.74)
LEAF: Color = (0.20, 0.52, 0.18)
CLAY: Color = (0.76, 0.40, 0.25)
GLOW: Color = (1.00, 0.93, 0.60)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of toy.

    Attributes:
        name: The word for it.
        synonyms: Words or phrases used in captions, the name first.
        build: Random numbers to parts.
        parts: Named parts that a caption may give a second colour.
        support_top: Height of the flat top in the builder's own units, for kinds that can carry
            another toy, else None.
    """

    name: str
    synonyms: tuple[str, ...]
    build: Callable[[Rng], list[Part]]
    parts: tuple[str, ...] = ()
    support_top: float | None = None
    support_half_width: float = 0.0


def _eye_pair(x: float, y: float, z: float, r: float) -> list[Part]:
    return [
        Part(name="eyes", primitive=Primitive.ELLIPSOID, size=(r, r, r), center=(s * x, y, z),
             color=DARK)
        for s in (-1, 1)
    ]  # fmt: skip


def _ball(
    name: str, center: tuple[float, float, float], *radii: float, color: Color | None = None,
    blend: float = 0.0, rot: np.ndarray | None = None,
) -> Part:  # fmt: skip
    size = radii if len(radii) == 3 else (radii[0],) * 3
    return Part(name=name, primitive=Primitive.ELLIPSOID, size=size, center=center, color=color,
                blend=blend, rotation=np.eye(3) if rot is None else rot)  # fmt: skip


def _box(
    name: str, center: tuple[float, float, float], *half: float, r: float = 0.03,
    color: Color | None = None, rot: np.ndarray | None = None,
) -> Part:  # fmt: skip
    return Part(name=name, primitive=Primitive.BOX, size=(*half, min(r, *half)), center=center,
                color=color, rotation=np.eye(3) if rot is None else rot)  # fmt: skip


def _rod(
    name: str, center: tuple[float, float, float], radius: float, half: float, r: float = 0.02,
    color: Color | None = None, rot: np.ndarray | None = None,
) -> Part:  # fmt: skip
    return Part(name=name, primitive=Primitive.CYLINDER, size=(radius, half, min(r, radius, half)),
                center=center, color=color,
                rotation=np.eye(3) if rot is None else rot)  # fmt: skip


def _cone(
    name: str, center: tuple[float, float, float], bottom: float, top: float, half: float,
    r: float = 0.015, color: Color | None = None, rot: np.ndarray | None = None,
) -> Part:  # fmt: skip
    return Part(name=name, primitive=Primitive.CONE, size=(bottom, top, half, min(r, top)),
                center=center, color=color,
                rotation=np.eye(3) if rot is None else rot)  # fmt: skip


def _limb(
    name: str, start: tuple[float, float, float], end: tuple[float, float, float], r1: float,
    r2: float, color: Color | None = None, blend: float = 0.0,
) -> Part:  # fmt: skip
    """A round cone from start to end."""
    axis = np.subtract(end, start)
    length = float(np.linalg.norm(axis))
    y = axis / length
    helper = np.array([1.0, 0, 0]) if abs(y[0]) < 0.9 else np.array([0, 0, 1.0])
    x = np.cross(helper, y)
    x /= np.linalg.norm(x)
    rot = np.stack([x, y, np.cross(x, y)], axis=1)
    return Part(name=name, primitive=Primitive.ROUND_CONE, size=(r1, r2, length), center=start,
                color=color, rotation=rot, blend=blend)  # fmt: skip


def mushroom(rng: Rng) -> list[Part]:
    h, w = rng.uniform(0.55, 0.75), rng.uniform(0.62, 0.78)
    cap = rng.uniform(0.42, 0.56)
    parts = [
        Part(name="main", primitive=Primitive.DOME, size=(w, cap, w), center=(0, h - 0.06, 0)),
        _limb("stem", (0, 0.16, 0), (0, h, 0), rng.uniform(0.2, 0.25), 0.16, color=CREAM),
    ]
    turn = rng.uniform(0, 360)
    for el, n, r in ((30, 5, 0.10), (62, 3, 0.085)):
        for i in range(n):
            az = np.radians(turn + 360 * i / n + el)
            e = np.radians(el)
            c = (w * np.cos(e) * np.sin(az), h - 0.06 + cap * np.sin(e), w * np.cos(e) * np.cos(az))
            parts.append(_ball("spots", c, r * rng.uniform(0.85, 1.15), color=SNOW))
    return parts


def snowman(rng: Rng) -> list[Part]:
    a, b = rng.uniform(0.44, 0.5), rng.uniform(0.30, 0.35)
    y1 = a * 0.92
    y2 = y1 + a * 0.8 + b * 0.6
    hat = y2 + b * 0.78
    brim, top = rng.uniform(0.30, 0.35), rng.uniform(0.2, 0.24)
    tall = rng.uniform(0.13, 0.18)
    return [
        _ball("body", (0, y1, 0), a, color=SNOW),
        _ball("body", (0, y2, 0), b, color=SNOW),
        _rod("main", (0, hat, 0), brim, 0.03),
        _rod("main", (0, hat + tall, 0), top, tall),
        Part(name="main", primitive=Primitive.TORUS, size=(b * 0.72, 0.075),
             center=(0, y2 - b * 0.72, 0)),
        _limb("nose", (0, y2, b * 0.9), (0, y2 - 0.02, b + rng.uniform(0.2, 0.27)), 0.065, 0.02,
              color=BEAK),
        *_eye_pair(0.12, y2 + 0.1, b * 0.9, 0.05),
        _ball("buttons", (0, y1 + a * 0.35, a * 0.93), 0.055, color=DARK),
        _ball("buttons", (0, y1 - a * 0.05, a * 0.99), 0.055, color=DARK),
    ]  # fmt: skip


def duck(rng: Rng) -> list[Part]:
    w, length = rng.uniform(0.36, 0.43), rng.uniform(0.54, 0.62)
    hy, hr = rng.uniform(0.76, 0.86), rng.uniform(0.25, 0.29)
    hz = rng.uniform(0.27, 0.34)
    return [
        _ball("main", (0, 0.36, 0), w, 0.36, length),
        _limb("main", (0, 0.45, 0.24), (0, hy - 0.1, hz), 0.24, 0.17, blend=0.12),
        _ball("main", (0, hy, hz), hr, blend=0.05),
        _limb("main", (0, 0.42, -0.35), (0, 0.66, -length - 0.06), 0.22, 0.05, blend=0.1),
        _ball("wings", (w * 0.88, 0.42, -0.04), 0.1, 0.19, 0.33),
        _ball("wings", (-w * 0.88, 0.42, -0.04), 0.1, 0.19, 0.33),
        _ball("beak", (0, hy - 0.04, hz + hr + 0.04), 0.13, 0.055, rng.uniform(0.15, 0.19),
              color=BEAK),
        *_eye_pair(0.15, hy + 0.09, hz + hr * 0.76, 0.055),
    ]  # fmt: skip


def car(rng: Rng) -> list[Part]:
    w, length = rng.uniform(0.40, 0.46), rng.uniform(0.86, 0.98)
    r = rng.uniform(0.19, 0.22)
    cab = rng.uniform(0.40, 0.5)
    side = rotation(z_deg=90)
    y = r + 0.16
    parts = [
        _box("main", (0, y, 0), w, 0.17, length, r=0.13),
        _box("main", (0, y + 0.31, -0.12), w * 0.84, 0.04, cab * 0.82, r=0.04),
        _box("windows", (0, y + 0.2, -0.12), w * 0.86, 0.13, cab, r=0.1, color=GLASS),
        _box("bumper", (0, y - 0.12, length - 0.02), w * 0.92, 0.05, 0.05, color=STEEL),
    ]
    parts += [
        _rod("wheels", (sx * w * 0.92, r, sz * length * 0.58), r, 0.09, 0.04, color=DARK, rot=side)
        for sx in (-1, 1) for sz in (-1, 1)
    ]  # fmt: skip
    parts += [
        _rod("hubs", (sx * (w * 0.92 + 0.075), r, sz * length * 0.58), r * 0.5, 0.03, color=STEEL,
             rot=side)
        for sx in (-1, 1) for sz in (-1, 1)
    ]  # fmt: skip
    parts += [_ball("lights", (sx * w * 0.62, y + 0.02, length), 0.09, color=GLOW)
              for sx in (-1, 1)]  # fmt: skip
    return parts


def chair(rng: Rng) -> list[Part]:
    w, back = rng.uniform(0.40, 0.46), rng.uniform(0.42, 0.54)
    leg, thick = rng.uniform(0.42, 0.54), rng.uniform(0.055, 0.075)
    parts = [
        _box("main", (0, leg + thick, 0), w, thick, w, r=0.05),
        _box("main", (0, leg + thick + back, -w + 0.07), w, back, 0.07, r=0.06),
    ]
    parts += [
        _rod("legs", (sx * (w - 0.09), leg / 2, sz * (w - 0.09)), 0.07, leg / 2)
        for sx in (-1, 1) for sz in (-1, 1)
    ]  # fmt: skip
    return parts


def mug(rng: Rng) -> list[Part]:
    r, h = rng.uniform(0.40, 0.46), rng.uniform(0.44, 0.52)
    ring = rng.uniform(0.22, 0.26)
    return [
        Part(name="handle", primitive=Primitive.TORUS, size=(ring, 0.068),
             center=(r + 0.06, h, 0), rotation=rotation(x_deg=90)),
        _rod("drink", (0, h, 0), r * 0.86, h * 0.7, color=(0.32, 0.18, 0.09)),
        Part(name="main", primitive=Primitive.CUP, size=(r, h, 0.075), center=(0, h, 0)),
    ]  # fmt: skip


def house(rng: Rng) -> list[Part]:
    w, d, h = rng.uniform(0.46, 0.54), rng.uniform(0.42, 0.5), rng.uniform(0.32, 0.38)
    roof = rng.uniform(0.40, 0.5)
    return [
        _box("walls", (0, h, 0), w, h, d, r=0.02, color=CREAM),
        Part(name="main", primitive=Primitive.PRISM, size=(w + 0.13, roof, d + 0.1, 0.0),
             center=(0, 2 * h - 0.05, 0)),
        _box("chimney", (w * 0.5, 2 * h + roof * 0.62, -d * 0.3), 0.09, 0.24, 0.09,
             color=(0.55, 0.30, 0.22)),
        _box("door", (0, 0.21, d), 0.12, 0.21, 0.035, color=(0.36, 0.22, 0.13)),
        _box("windows", (w * 0.58, h * 1.1, d), 0.1, 0.1, 0.03, color=GLASS),
        _box("windows", (-w * 0.58, h * 1.1, d), 0.1, 0.1, 0.03, color=GLASS),
        _box("windows", (w, h * 1.1, 0), 0.03, 0.1, 0.13, color=GLASS),
        _box("windows", (-w, h * 1.1, 0), 0.03, 0.1, 0.13, color=GLASS),
    ]  # fmt: skip


def rocket(rng: Rng) -> list[Part]:
    r, h = rng.uniform(0.27, 0.32), rng.uniform(0.58, 0.68)
    nose = rng.uniform(0.36, 0.46)
    y = 0.30
    parts = [
        _cone("body", (0, y + h, 0), r * 0.95, r, h, 0.06, color=SNOW),
        Part(name="main", primitive=Primitive.DOME, size=(r * 1.03, nose + 0.12, r * 1.03),
             center=(0, y + 2 * h - 0.12, 0)),
        _cone("nozzle", (0, y - 0.07, 0), 0.22, 0.15, 0.1, color=STEEL),
        Part(name="window", primitive=Primitive.TORUS, size=(0.12, 0.04),
             center=(0, y + h * 1.35, r * 0.97), rotation=rotation(x_deg=90), color=STEEL),
        _ball("window", (0, y + h * 1.35, r * 0.92), 0.12, 0.12, 0.06, color=GLASS),
    ]  # fmt: skip
    for i in range(4):
        a = 45 + 90 * i
        s, c = np.sin(np.radians(a)), np.cos(np.radians(a))
        start = (s * r * 0.8, y + 0.40, c * r * 0.8)
        parts.append(_limb("main", start, (s * (r + 0.28), 0.07, c * (r + 0.28)), 0.09, 0.065))
    return parts


def teapot(rng: Rng) -> list[Part]:
    r, h = rng.uniform(0.44, 0.5), rng.uniform(0.36, 0.42)
    return [
        _ball("main", (0, h, 0), r, h, r),
        _limb("spout", (r * 0.75, h * 0.85, 0), (r + 0.34, h * 1.75, 0), 0.13, 0.065, blend=0.08),
        Part(name="handle", primitive=Primitive.TORUS, size=(rng.uniform(0.21, 0.25), 0.058),
             center=(-r - 0.05, h * 1.05, 0), rotation=rotation(x_deg=90)),
        Part(name="lid", primitive=Primitive.DOME, size=(r * 0.62, 0.14, r * 0.62),
             center=(0, 2 * h - 0.10, 0)),
        _ball("lid", (0, 2 * h + 0.09, 0), 0.075),
        _rod("main", (0, 0.03, 0), r * 0.6, 0.04),
    ]  # fmt: skip


def tree(rng: Rng) -> list[Part]:
    trunk = rng.uniform(0.36, 0.5)
    w = rng.uniform(0.48, 0.56)
    step = rng.uniform(0.30, 0.36)
    return [
        _cone("trunk", (0, trunk / 2, 0), 0.15, 0.12, trunk / 2, color=WOOD),
        _cone("main", (0, trunk + 0.24, 0), w, 0.2, 0.28, 0.05),
        _cone("main", (0, trunk + 0.24 + step, 0), w * 0.78, 0.14, 0.25, 0.05),
        _cone("main", (0, trunk + 0.24 + 2 * step, 0), w * 0.56, 0.045, 0.25, 0.035),
    ]


def table(rng: Rng) -> list[Part]:
    w, d = rng.uniform(0.58, 0.68), rng.uniform(0.44, 0.5)
    leg = 0.78
    parts = [_box("main", (0, leg + 0.06, 0), w, 0.06, d, r=0.04)]
    parts += [
        _rod("legs", (sx * (w - 0.11), leg / 2, sz * (d - 0.11)), 0.065, leg / 2)
        for sx in (-1, 1) for sz in (-1, 1)
    ]  # fmt: skip
    return parts


def lamp(rng: Rng) -> list[Part]:
    h, w = rng.uniform(0.72, 0.86), rng.uniform(0.40, 0.48)
    return [
        _rod("base", (0, 0.05, 0), rng.uniform(0.27, 0.32), 0.05, color=STEEL),
        _rod("base", (0, h / 2, 0), 0.05, h / 2, color=STEEL),
        _cone("main", (0, h + 0.2, 0), w, w * rng.uniform(0.48, 0.58), 0.28, 0.03),
    ]


def boat(rng: Rng) -> list[Part]:
    w, length = rng.uniform(0.34, 0.40), rng.uniform(0.80, 0.90)
    mast = rng.uniform(0.95, 1.1)
    sail = rng.uniform(0.36, 0.42)
    y = 0.34
    return [
        Part(name="main", primitive=Primitive.HULL, size=(w, 0.36, length, 0.55),
             center=(0, y, 0)),
        _rod("mast", (0, y - 0.2 + mast / 2, 0.08), 0.042, mast / 2, color=WOOD),
        Part(name="sail", primitive=Primitive.PRISM, size=(sail, mast * 0.78, 0.035, 0.0),
             center=(0, y + 0.08, -sail * 0.75), rotation=rotation(y_deg=90), color=SNOW),
    ]  # fmt: skip


def robot(rng: Rng) -> list[Part]:
    w, h = rng.uniform(0.32, 0.37), rng.uniform(0.33, 0.38)
    head = rng.uniform(0.22, 0.26)
    leg = rng.uniform(0.28, 0.34)
    y = leg + h
    hy = y + h + head + 0.05
    parts = [
        _box("main", (0, y, 0), w, h, 0.24, r=0.06),
        _box("head", (0, hy, 0), head * 1.15, head, head, r=0.06),
        _box("panel", (0, y + 0.06, 0.24), w * 0.6, 0.13, 0.025, color=STEEL),
        *_eye_pair(head * 0.5, hy + 0.04, head, 0.062),
        _box("mouth", (0, hy - 0.1, head), 0.11, 0.025, 0.02, color=DARK),
        _rod("antenna", (0, hy + head + 0.08, 0), 0.028, 0.1, color=STEEL),
        _ball("antenna", (0, hy + head + 0.2, 0), 0.062, color=(0.9, 0.15, 0.12)),
    ]
    for s in (-1, 1):
        parts.append(_limb("arms", (s * (w + 0.08), y + h * 0.7, 0),
                           (s * (w + 0.14), y - h * 0.5, 0.06), 0.085, 0.085))  # fmt: skip
        parts.append(_limb("legs", (s * w * 0.55, leg, 0), (s * w * 0.55, 0.1, 0), 0.1, 0.1))
        parts.append(_box("legs", (s * w * 0.55, 0.07, 0.06), 0.13, 0.07, 0.18, r=0.05))
    return parts


def cat(rng: Rng) -> list[Part]:
    length, leg = rng.uniform(0.40, 0.48), rng.uniform(0.26, 0.32)
    hr = rng.uniform(0.24, 0.28)
    y = leg + 0.16
    hy, hz = y + rng.uniform(0.25, 0.32), length + 0.12
    parts = [
        _limb("main", (0, y, -length + 0.1), (0, y + 0.03, length - 0.12), 0.22, 0.21),
        _ball("main", (0, hy, hz), hr, hr * 0.9, hr * 0.9, blend=0.06),
        _limb("tail", (0, y + 0.08, -length - 0.08), (0, y + 0.56, -length - 0.26), 0.07, 0.05,
              blend=0.06),
        *_eye_pair(0.1, hy + 0.05, hz + hr * 0.78, 0.045),
        _ball("nose", (0, hy - 0.04, hz + hr * 0.88), 0.04, color=(0.95, 0.55, 0.6)),
    ]  # fmt: skip
    parts += [
        _cone("ears", (s * 0.15, hy + hr * 0.9, hz - 0.02), 0.1, 0.025, 0.12,
              rot=rotation(z_deg=-s * 14))
        for s in (-1, 1)
    ]  # fmt: skip
    parts += [
        _limb("legs", (s * 0.14, y - 0.02, z * (length - 0.16)),
              (s * 0.14, 0.08, z * (length - 0.16)), 0.095, 0.08)
        for s in (-1, 1) for z in (-1, 1)
    ]  # fmt: skip
    return parts


def fish(rng: Rng) -> list[Part]:
    length, h = rng.uniform(0.56, 0.64), rng.uniform(0.34, 0.42)
    y = 0.46
    return [
        _ball("main", (0, y, 0.06), rng.uniform(0.19, 0.24), h, length),
        _limb("tail", (0, y, -length * 0.85), (0, y + 0.32, -length - 0.24), 0.075, 0.045),
        _limb("tail", (0, y, -length * 0.85), (0, y - 0.32, -length - 0.24), 0.075, 0.045),
        _ball("fins", (0, y + h * 0.98, 0.0), 0.045, 0.18, 0.26),
        _ball("fins", (0.24, y - 0.1, 0.12), 0.14, 0.05, 0.11, rot=rotation(z_deg=-35)),
        _ball("fins", (-0.24, y - 0.1, 0.12), 0.14, 0.05, 0.11, rot=rotation(z_deg=35)),
        _ball("eyes", (0.155, y + 0.08, length * 0.62), 0.068, color=DARK),
        _ball("eyes", (-0.155, y + 0.08, length * 0.62), 0.068, color=DARK),
    ]


def rabbit(rng: Rng) -> list[Part]:
    b, hr = rng.uniform(0.34, 0.39), rng.uniform(0.24, 0.28)
    ear = rng.uniform(0.40, 0.52)
    hy, hz = b * 1.9 + hr * 0.5, 0.12
    parts = [
        _ball("main", (0, b, -0.04), b * 0.95, b, b * 1.02),
        _ball("main", (0, hy, hz), hr, blend=0.08),
        _ball("tail", (0, b * 0.7, -b * 1.06), 0.13, color=SNOW),
        _ball("nose", (0, hy - 0.03, hz + hr), 0.045, color=(0.95, 0.55, 0.6)),
        *_eye_pair(0.12, hy + 0.07, hz + hr * 0.86, 0.05),
    ]
    for s in (-1, 1):
        parts.append(_limb("ears", (s * 0.1, hy + hr * 0.7, hz - 0.05),
                           (s * 0.17, hy + hr * 0.7 + ear, hz - 0.1), 0.07, 0.085))  # fmt: skip
        parts.append(_ball("feet", (s * 0.2, 0.09, b * 0.75), 0.12, 0.09, 0.2))
    return parts


def cactus(rng: Rng) -> list[Part]:
    h, r = rng.uniform(0.72, 0.86), rng.uniform(0.18, 0.21)
    pot = 0.36
    left, right = rng.uniform(0.30, 0.42), rng.uniform(0.44, 0.56)
    return [
        _cone("pot", (0, pot / 2, 0), 0.24, 0.33, pot / 2, 0.03, color=CLAY),
        _rod("pot", (0, pot - 0.03, 0), 0.36, 0.06, color=CLAY),
        _limb("main", (0, pot, 0), (0, pot + h, 0), r, r * 0.92),
        _limb("main", (r * 0.5, pot + left, 0), (r + 0.24, pot + left + 0.02, 0), 0.1, 0.1),
        _limb("main", (r + 0.24, pot + left, 0), (r + 0.25, pot + left + 0.27, 0), 0.1, 0.09),
        _limb("main", (-r * 0.5, pot + right, 0), (-r - 0.2, pot + right + 0.02, 0), 0.09, 0.09),
        _limb("main", (-r - 0.2, pot + right, 0), (-r - 0.21, pot + right + 0.2, 0), 0.09, 0.08),
        _ball("flower", (0, pot + h + r * 0.95, 0), 0.12, 0.08, 0.12, color=(0.98, 0.5, 0.72)),
    ]


def airplane(rng: Rng) -> list[Part]:
    length, r = rng.uniform(0.78, 0.9), rng.uniform(0.18, 0.21)
    span = rng.uniform(0.82, 0.95)
    y = 0.34
    return [
        _limb("main", (0, y + 0.06, -length), (0, y, length * 0.72), 0.09, r),
        _ball("windows", (0, y + r * 0.62, length * 0.42), r * 0.66, r * 0.6, 0.24, color=GLASS),
        _box("wings", (0, y - 0.03, 0.16), span, 0.042, 0.19, r=0.04),
        _box("tail", (0, y + 0.1, -length + 0.04), 0.34, 0.036, 0.12, r=0.034),
        _box("tail", (0, y + 0.27, -length + 0.02), 0.036, 0.2, 0.13, r=0.034),
        _ball("propeller", (0, y, length * 0.72 + r), 0.07, color=STEEL),
        _box("propeller", (0, y, length * 0.72 + r + 0.03), 0.05, 0.3, 0.022, color=DARK,
             rot=rotation(z_deg=rng.uniform(-20, 20))),
    ]  # fmt: skip


def cake(rng: Rng) -> list[Part]:
    r, h = rng.uniform(0.54, 0.6), rng.uniform(0.22, 0.26)
    parts = [
        _rod("plate", (0, 0.03, 0), r + 0.13, 0.03, color=SNOW),
        _rod("main", (0, 0.06 + h, 0), r, h, 0.05),
        _rod("icing", (0, 0.06 + 2 * h, 0), r * 1.015, 0.07, 0.065, color=CREAM),
    ]
    for i in range(6):
        a = np.radians(60 * i)
        parts.append(_ball("icing", (0.83 * r * np.sin(a), 0.17 + 2 * h, 0.83 * r * np.cos(a)),
                           0.085, color=CREAM))  # fmt: skip
    parts += [
        _rod("candle", (0, 0.3 + 2 * h, 0), 0.055, 0.19, color=(0.35, 0.65, 0.95)),
        _ball("flame", (0, 0.56 + 2 * h, 0), 0.055, 0.1, 0.055, color=(1.0, 0.68, 0.12)),
    ]
    return parts


def cube(rng: Rng) -> list[Part]:
    return [_box("main", (0, 0.5, 0), 0.5, 0.5, 0.5, r=rng.uniform(0.05, 0.11))]


def ball(rng: Rng) -> list[Part]:
    r = 0.5
    return [
        _ball("main", (0, r, 0), r),
        Part(name="stripe", primitive=Primitive.CYLINDER,
             size=(r * 1.012, rng.uniform(0.08, 0.12), 0.01), center=(0, r, 0), color=SNOW),
    ]  # fmt: skip


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="mushroom", synonyms=("mushroom", "toadstool"), build=mushroom,
             parts=("stem", "spots")),
        Kind(name="snowman", synonyms=("snowman",), build=snowman, parts=("body", "nose")),
        Kind(name="duck", synonyms=("duck", "duckling"), build=duck, parts=("beak", "wings")),
        Kind(name="car", synonyms=("car", "automobile"), build=car, parts=("wheels", "windows")),
        Kind(name="chair", synonyms=("chair",), build=chair, parts=("legs",)),
        Kind(name="mug", synonyms=("mug", "cup"), build=mug, parts=("handle",)),
        Kind(name="house", synonyms=("house", "cottage"), build=house, parts=("walls", "door")),
        Kind(name="rocket", synonyms=("rocket", "spaceship"), build=rocket, parts=("body",)),
        Kind(name="teapot", synonyms=("teapot",), build=teapot, parts=("lid", "handle")),
        Kind(name="tree", synonyms=("tree", "fir tree"), build=tree, parts=("trunk",)),
        Kind(name="table", synonyms=("table", "desk"), build=table, parts=("legs",),
             support_top=0.90, support_half_width=0.44),
        Kind(name="lamp", synonyms=("lamp",), build=lamp, parts=("base",)),
        Kind(name="boat", synonyms=("boat", "sailboat"), build=boat, parts=("sail",)),
        Kind(name="robot", synonyms=("robot",), build=robot, parts=("head", "legs", "arms")),
        Kind(name="cat", synonyms=("cat", "kitten"), build=cat, parts=("tail", "ears")),
        Kind(name="fish", synonyms=("fish",), build=fish, parts=("fins", "tail")),
        Kind(name="rabbit", synonyms=("rabbit", "bunny"), build=rabbit, parts=("ears", "tail")),
        Kind(name="cactus", synonyms=("cactus",), build=cactus, parts=("pot", "flower")),
        Kind(name="airplane", synonyms=("airplane", "plane"), build=airplane,
             parts=("wings", "tail")),
        Kind(name="cake", synonyms=("cake",), build=cake, parts=("icing", "candle")),
        Kind(name="cube", synonyms=("cube", "block"), build=cube, support_top=1.0,
             support_half_width=0.46),
        Kind(name="ball", synonyms=("ball",), build=ball, parts=("stripe",)),
    )
}  # fmt: skip

KIND_NAMES: tuple[str, ...] = tuple(KINDS)
SUPPORTS: tuple[str, ...] = tuple(k.name for k in KINDS.values() if k.support_top is not None)
