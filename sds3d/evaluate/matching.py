"""Which exact renders do views of a mesh look like?

The distance of two views is the mean over the pixels (of half the resolution) of the squared
differences of premultiplied red, green and blue, plus `ALPHA_WEIGHT` times that of the coverage:
where both are covered colours count, where one is, the outline counts as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sds3d.evaluate.layers import (
    AZIMUTHS_DEG,
    Reference,
    Shape,
    color_weights,
    exact_views,
    pool,
)
from sds3d.evaluate.references import References
from sds3d.toybox.colors import COLOR_NAMES
from sds3d.toybox.scenes import SceneSpec
from sds3d.toybox.shapes import rotation
from sds3d.toybox.tracer import Light

ALPHA_WEIGHT = 1.0
TOLERANCE_DEG = 30.0
ASYMMETRIC_FROM = 0.9
"""A shape is asymmetric if this share of exact views finds its azimuth among other variations."""

BETWEEN_DEG = AZIMUTHS_DEG + 0.5 * (AZIMUTHS_DEG[1] - AZIMUTHS_DEG[0])
"""Azimuths half-way between the references'."""

_ASYMMETRY_RENDERS = 4
_ASYMMETRY_VARIATION = 2000  # and the next: none of the references

_CHANNEL_WEIGHTS = np.array([1.0, 1.0, 1.0, ALPHA_WEIGHT], np.float32)


def view_distances(
    reference: Reference, weights: np.ndarray, views: np.ndarray, *, all_azimuths: bool = False
) -> np.ndarray:
    """Distances of views to exact renders in C colourings.

    Args:
        reference: Renders of one shape, R variations from 24 sides.
        weights: Of `color_weights`, [C, 4, 6].
        views: Pooled views of a mesh, float32 [V, P, 4].
        all_azimuths: Compare every view with every azimuth; otherwise V is 24 and view i is
            compared with azimuth i alone.

    Returns:
        float64 [C, R, 24] or, for all azimuths, [C, R, 24, V].
    """
    # |x - q L|^2 = |x|^2 - 2 q (L x) + q (L L^T) q for each channel's weights q over the layers L.
    pixels = views.shape[1]
    channel = _CHANNEL_WEIGHTS
    weighted = weights * channel[None, :, None]
    own = np.einsum("vpc,c->v", views.astype(np.float64) ** 2, channel)
    quadratic = np.einsum("kcl,kcm->klm", weighted, weights)
    squared = np.einsum("klm,ralm->kra", quadratic, reference.gram, optimize=True)
    if all_azimuths:
        flat = reference.layers.transpose(0, 1, 3, 2).reshape(-1, pixels)
        inner = flat @ views.transpose(1, 0, 2).reshape(pixels, -1)
        inner = inner.reshape(*reference.layers.shape[:2], -1, len(views), 4)
        cross = np.einsum("kcl,ralvc->krav", weighted, inner, optimize=True)
        total = own + squared[..., None] - 2.0 * cross
    else:
        inner = reference.layers.swapaxes(-1, -2) @ views[None]
        cross = np.einsum("kcl,ralc->kra", weighted, inner, optimize=True)
        total = own + squared - 2.0 * cross
    return total.astype(np.float64) / pixels


def candidate_distances(
    candidates: list[SceneSpec], views: np.ndarray, references: References
) -> np.ndarray:
    """Distance [C] of a mesh's 24 pooled views to each candidate scene.

    The mean over the azimuths of the distance to the nearest of the variations, each view compared
    with its own azimuth: a mesh that is turned or repeats its front is far from everything.
    """
    distances = np.empty(len(candidates))
    by_shape: dict[Shape, list[int]] = {}
    for i, spec in enumerate(candidates):
        by_shape.setdefault(Shape.of(spec), []).append(i)
    for shape, members in by_shape.items():
        colorings = [
            (candidates[i].color, candidates[i].part_color or candidates[i].support_color)
            for i in members
        ]
        found = view_distances(references(shape), color_weights(colorings), views)
        distances[members] = found.min(axis=1).mean(axis=1)
    return distances


def azimuth_accuracy(
    reference: Reference, weights: np.ndarray, views: np.ndarray, azimuths_deg: np.ndarray
) -> float:
    """Share of pooled views [V, P, 4] whose best match lies within 30 degrees of their azimuth.

    weights: one colouring, [1, 4, 6]. For azimuths half-way between the references' 24, four of
    these lie within 30 degrees: chance is 1/6.
    """
    distances = view_distances(reference, weights, views, all_azimuths=True)[0]
    best = AZIMUTHS_DEG[distances.min(axis=0).argmin(axis=0)]
    away = np.abs((best - azimuths_deg + 180.0) % 360.0 - 180.0)
    return float((away < TOLERANCE_DEG).mean())


def exact_azimuth_share(references: References, shape: Shape) -> float:
    """How often exact renders of other variations tell their azimuth, as meshes are asked to.

    Their light comes from other sides than the references', so that only the thing itself can tell.
    """
    shares = []
    for i in range(_ASYMMETRY_RENDERS):
        color, second = COLOR_NAMES[3 * i], COLOR_NAMES[(3 * i + 5) % len(COLOR_NAMES)]
        spec = shape.in_colors(color, second)
        turned = rotation(y_deg=360.0 * (i + 1) / (_ASYMMETRY_RENDERS + 1))
        x, y, z = turned @ Light().direction
        views = exact_views(
            spec,
            _ASYMMETRY_VARIATION + i,
            BETWEEN_DEG,
            frame=references.frame,
            light=Light(direction=(x, y, z)),
        )
        weights = color_weights([(color, second)])
        shares.append(azimuth_accuracy(references(shape), weights, pool(views), BETWEEN_DEG))
    return float(np.mean(shares))


def silhouette_ious(reference: Reference, silhouettes: np.ndarray) -> np.ndarray:
    """Mean IoU over the azimuths with each variation, [R]; silhouettes are bool [24, SIDE^2]."""
    both = (reference.silhouettes & silhouettes).sum(-1)
    either = (reference.silhouettes | silhouettes).sum(-1)
    return (both / np.maximum(either, 1)).mean(axis=1)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Views of a mesh as they are compared.

    Attributes:
        pooled: float32 [24, P, 4], from the references' azimuths.
        between: float32 [24, P, 4], from the azimuths half-way between them.
        silhouettes: bool [24, SIDE^2], from the references' azimuths.
    """

    pooled: np.ndarray
    between: np.ndarray
    silhouettes: np.ndarray

    @classmethod
    def of(cls, views: np.ndarray, between: np.ndarray) -> Pictures:
        """From renders float32 [24, SIDE, SIDE, 4], the colour premultiplied."""
        return cls(
            pooled=pool(views),
            between=pool(between),
            silhouettes=views[..., 3].reshape(len(views), -1) > 0.5,
        )
