"""The twelve colours of the toybox world, as sRGB in [0, 1]."""

from __future__ import annotations

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.09),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.85, 0.12),
    "green": (0.14, 0.60, 0.18),
    "turquoise": (0.12, 0.78, 0.76),
    "blue": (0.10, 0.28, 0.84),
    "purple": (0.50, 0.16, 0.72),
    "pink": (0.99, 0.56, 0.74),
    "brown": (0.44, 0.25, 0.11),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
}

COLOR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "turquoise": ("turquoise", "cyan", "teal"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "white": ("white",),
    "gray": ("gray", "grey"),
    "black": ("black",),
}

COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
