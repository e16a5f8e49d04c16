"""Exact renders of the world to compare with: 16 variations from 24 sides, in any colours.

A render is linear in the colours that a caption names: light and shape stay, so that one picture
of each shape in layers gives every colouring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sds3d.evaluate.exact import exact_solid, world_solid
from sds3d.evaluate.raycast import DISTANCE, ELEVATION_DEG, FOVY_DEG, SIDE
from sds3d.toybox import tracer
from sds3d.toybox.colors import COLORS
from sds3d.toybox.scenes import SceneSpec
from sds3d.toybox.shapes import Solid

VARIATIONS = 16
AZIMUTHS_DEG = np.arange(24) * 15.0

POOLED_SIDE = SIDE // 2
"""Colours are compared at half the resolution: means of 2 x 2 pixels, a slight blur."""

# Colours that no part has of itself: they mark the parts that a caption's colours go to.
_MAIN, _SECOND = "turquoise", "purple"
_MARK = 0.9
_UNIT = 230.0  # layers reach 1.1 at most; as bytes they are multiples of 1 / 230

N_LAYERS = 6
MAIN_LAYER, SECOND_LAYER, ALPHA_LAYER = 3, 4, 5


@dataclass(frozen=True)
class Frame:
    """How the world's things stand before the camera.

    Attributes:
        name: For the folder of the renders.
        solid: A variation of a scene in the cameras' coordinates.
        distance: Of the cameras, from the origin.
    """

    name: str
    solid: Callable[[SceneSpec, int], Solid]
    distance: float


EXPORT_FRAME = Frame("export", exact_solid, DISTANCE)
"""As exported meshes stand."""

TEACHER_FRAME = Frame("teacher", world_solid, tracer.DISTANCE)
"""As in the pictures that the teacher was trained on."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a scene looks like but for the colours that its caption names."""

    kind: str
    part: str | None = None
    support: str | None = None

    @classmethod
    def of(cls, spec: SceneSpec) -> Shape:
        return cls(kind=spec.kind, part=spec.part, support=spec.support)

    def in_colors(self, color: str, second: str) -> SceneSpec:
        return SceneSpec(
            kind=self.kind,
            color=color,
            part=self.part,
            part_color=second if self.part else None,
            support=self.support,
            support_color=second if self.support else None,
        )

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.part, self.support and f"on-{self.support}")))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Renders of one shape, in layers.

    Attributes:
        layers: float32 [16, 24, P, 6], P = POOLED_SIDE^2: the fixed parts' colour (3, under light,
            premultiplied), the light on the parts of the main colour, that on the parts (or the
            support) of the second one, and the coverage.
        gram: float32 [16, 24, 6, 6], inner products of the layers over the pixels.
        silhouettes: bool [16, 24, SIDE^2].
    """

    layers: np.ndarray
    gram: np.ndarray
    silhouettes: np.ndarray


def color_weights(colors: list[tuple[str, str | None]]) -> np.ndarray:
    """How the layers add up to the channels R, G, B, A: float32 [C, 4, 6] for C colourings."""
    weights = np.zeros((len(colors), 4, N_LAYERS), np.float32)
    for channel in range(3):
        weights[:, channel, channel] = 1.0
        for i, (color, second) in enumerate(colors):
            weights[i, channel, MAIN_LAYER] = COLORS[color][channel]
            weights[i, channel, SECOND_LAYER] = 0.0 if second is None else COLORS[second][channel]
    weights[:, 3, ALPHA_LAYER] = 1.0
    return weights


def pool(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, pixels in one axis: [..., SIDE, SIDE, C] to [..., P, C]."""
    *lead, height, width, channels = images.shape
    blocks = images.reshape(*lead, height // 2, 2, width // 2, 2, channels)
    return blocks.mean(axis=(-4, -2)).reshape(*lead, -1, channels)


def _marked(solid: Solid, main: tuple[float, ...], second: tuple[float, ...]) -> Solid:
    """The solid with other colours on the marked parts; all else black if main is a mark."""
    is_main = (solid.colors == COLORS[_MAIN]).all(1)
    is_second = (solid.colors == COLORS[_SECOND]).all(1)
    colors = solid.colors if main == second else np.zeros_like(solid.colors)
    colors = np.where(is_main[:, None], main, colors)
    return replace(solid, colors=np.where(is_second[:, None], second, colors))


def render_layers(
    shape: Shape, variation: int, frame: Frame = EXPORT_FRAME
) -> tuple[np.ndarray, np.ndarray]:
    """Layers [24, P, 6] and silhouettes [24, SIDE^2] of one variation.

    Only the tracer's cut at 1 is not linear: it is applied to the fixed parts, and left out where
    it would darken the brightest spots of the four lightest colours, by less than 0.05.
    """
    solid = frame.solid(shape.in_colors(_MAIN, _SECOND), variation)
    black = (0.0, 0.0, 0.0)
    fixed = _marked(solid, black, black)
    marks = _marked(solid, (_MARK, 0.0, 0.0), (0.0, _MARK, 0.0))
    layers = np.empty((len(AZIMUTHS_DEG), POOLED_SIDE**2, N_LAYERS), np.float32)
    silhouettes = np.empty((len(AZIMUTHS_DEG), SIDE**2), bool)
    for i, azimuth in enumerate(AZIMUTHS_DEG):
        fixed_view, light = (_trace(one, float(azimuth), frame) for one in (fixed, marks))
        silhouettes[i] = fixed_view[..., 3].reshape(-1) > 0.5
        # The marks' third channel is the sheen that every part has, whatever its colour.
        sheen = light[..., 2:3]
        view = [fixed_view[..., :3], (light[..., :2] - sheen) / _MARK, fixed_view[..., 3:]]
        layers[i] = pool(np.concatenate(view, -1))
    return layers, silhouettes


def _trace(
    solid: Solid, azimuth_deg: float, frame: Frame, light: tracer.Light | None = None
) -> np.ndarray:
    return tracer.render_rgba(
        solid,
        azimuth_deg=azimuth_deg,
        elevation_deg=ELEVATION_DEG,
        distance=frame.distance,
        fovy_deg=FOVY_DEG,
        size=SIDE,
        supersample=1,
        light=light,
    )


def exact_views(
    spec: SceneSpec,
    variation: int,
    azimuths_deg: np.ndarray,
    *,
    frame: Frame = EXPORT_FRAME,
    light: tracer.Light | None = None,
) -> np.ndarray:
    """One variation as the tracer shows it, float32 [V, SIDE, SIDE, 4]."""
    solid = frame.solid(spec, variation)
    views = [_trace(solid, float(azimuth), frame, light) for azimuth in azimuths_deg]
    return np.stack(views).astype(np.float32)


def code(layers: np.ndarray, silhouettes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Layers as bytes, silhouettes as bits."""
    coded = np.clip(np.round(layers * _UNIT), 0, 255).astype(np.uint8)
    return coded, np.packbits(silhouettes, axis=-1)


def decode(coded: np.ndarray, bits: np.ndarray) -> Reference:
    """The reference that `code` made the arrays from, up to their rounding."""
    layers = coded.astype(np.float32) / _UNIT
    silhouettes = np.unpackbits(bits, axis=-1).astype(bool)
    return Reference(layers=layers, gram=layers.swapaxes(-1, -2) @ layers, silhouettes=silhouettes)
