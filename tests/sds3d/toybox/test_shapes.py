"""Signed distances of primitives and of kinds: signs, lower bounds, gradients."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial import KDTree

from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, build
from sds3d.toybox.shapes import Part, Primitive, pack, rotation
from sds3d.toybox.tracer import signed_distance, surface_colors

Inside = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x / 0.5) ** 2 + (y / 0.3) ** 2 + (z / 0.7) ** 2 < 1


def _round_cone(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The union of the balls between the two ends: radius and height both linear in s."""
    inside = np.zeros(len(x), bool)
    for s in np.linspace(0, 1, 400):
        r = 0.35 + (0.15 - 0.35) * s
        inside |= x**2 + (y - 0.6 * s) ** 2 + z**2 < r * r
    return inside


# Each primitive's solid in its own words; sharp where a rounding radius is allowed to be 0.
SOLIDS: dict[Primitive, tuple[tuple[float, ...], Inside]] = {
    Primitive.ELLIPSOID: ((0.5, 0.3, 0.7), _ellipsoid),
    Primitive.BOX: (
        (0.5, 0.3, 0.7, 0.0),
        lambda x, y, z: (abs(x) < 0.5) & (abs(y) < 0.3) & (abs(z) < 0.7),
    ),
    Primitive.ROUND_CONE: ((0.35, 0.15, 0.6), _round_cone),
    Primitive.CYLINDER: ((0.4, 0.6, 0.0), lambda x, y, z: (np.hypot(x, z) < 0.4) & (abs(y) < 0.6)),
    Primitive.CONE: (
        (0.6, 0.2, 0.5, 0.0),
        lambda x, y, z: (np.hypot(x, z) < 0.4 - 0.4 * y) & (abs(y) < 0.5),
    ),
    Primitive.TORUS: ((0.5, 0.2), lambda x, y, z: (np.hypot(x, z) - 0.5) ** 2 + y**2 < 0.04),
    Primitive.DOME: ((0.5, 0.3, 0.7), lambda x, y, z: _ellipsoid(x, y, z) & (y > 0)),
    Primitive.PRISM: (
        (0.6, 0.5, 0.4, 0.0),
        lambda x, y, z: (y > 0) & (abs(x) / 0.6 + y / 0.5 < 1) & (abs(z) < 0.4),
    ),
}


def _points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3))


@pytest.mark.parametrize("primitive", SOLIDS)
def test_the_sign_says_inside_or_outside(primitive: Primitive) -> None:
    size, inside = SOLIDS[primitive]
    solid = pack([Part(name="main", primitive=primitive, size=size)], (1.0, 0.0, 0.0))
    points = _points(20_000)
    distance = signed_distance(solid, points)
    expected = inside(*points.T)
    clear = np.abs(distance) > 2e-3  # the oracle of the round cone is a union of finitely many
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(distance[clear] < 0, expected[clear])
    assert 0.01 < expected.mean() < 0.9


@pytest.mark.parametrize("primitive", Primitive)
def test_a_posed_part_is_the_part_at_the_posed_point(primitive: Primitive) -> None:
    size = (0.5, 0.3, 0.4, 0.05) if primitive != Primitive.CUP else (0.4, 0.5, 0.07)
    turn, center = rotation(x_deg=30, y_deg=50, z_deg=-20), (0.1, -0.2, 0.3)
    still = pack([Part(name="main", primitive=primitive, size=size)], (1.0, 0.0, 0.0))
    posed = pack(
        [Part(name="main", primitive=primitive, size=size, center=center, rotation=turn)],
        (1.0, 0.0, 0.0),
    )
    points = _points(2000, 1)
    np.testing.assert_allclose(
        signed_distance(posed, points @ turn.T + center), signed_distance(still, points), atol=1e-12
    )


def test_rotations_turn_the_way_they_say() -> None:
    x, y, z = np.eye(3)
    np.testing.assert_allclose(rotation(y_deg=90) @ z, x, atol=1e-12)
    np.testing.assert_allclose(rotation(x_deg=90) @ y, z, atol=1e-12)
    np.testing.assert_allclose(rotation(z_deg=90) @ x, y, atol=1e-12)


def _zero_set(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A kind's distances at random points, and points on its surface found by bisection."""
    solid = build(SceneSpec(kind=kind, color="red"), np.random.default_rng(seed))
    grid = np.linspace(-0.98, 0.98, 66)
    low = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1)
    surface = []
    for axis in range(3):
        a = low.take(range(len(grid) - 1), axis=axis).reshape(-1, 3)
        b = low.take(range(1, len(grid)), axis=axis).reshape(-1, 3)
        crossing = (signed_distance(solid, a) < 0) != (signed_distance(solid, b) < 0)
        a, b = a[crossing], b[crossing]
        sign = signed_distance(solid, a) < 0
        for _ in range(14):
            middle = (a + b) / 2
            same = (signed_distance(solid, middle) < 0) == sign
            a, b = np.where(same[:, None], middle, a), np.where(same[:, None], b, middle)
        surface.append((a + b) / 2)
    points = _points(20_000, seed)
    return np.column_stack([points, signed_distance(solid, points)]), np.concatenate(surface)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_distances_outside_are_lower_bounds_and_slopes_are_at_most_one(kind: str) -> None:
    found, surface = _zero_set(kind, 0)
    points, distance = found[:, :3], found[:, 3]
    assert len(surface) > 500
    true = KDTree(surface).query(points)[0]
    outside = distance > 0
    # A sphere tracer that walks these distances never steps through a surface. The surface's
    # points are a grid's step (0.03) apart, so the true distance is known to that.
    assert (distance[outside] < true[outside] + 0.03).all()
    near = outside & (true < 0.15) & (true > 0.03)
    assert near.sum() > 100
    assert np.median(distance[near] / true[near]) > 0.75, "much too small: tracing would crawl"
    solid = build(SceneSpec(kind=kind, color="red"), np.random.default_rng(0))
    close = points[np.abs(distance) < 0.02]
    step = np.random.default_rng(1).normal(size=close.shape)
    step *= 1e-4 / np.linalg.norm(step, axis=1, keepdims=True)
    slope = np.abs(signed_distance(solid, close + step) - signed_distance(solid, close)) / 1e-4
    assert slope.max() < 1.35
    assert np.quantile(slope, 0.99) < 1.1
    assert slope.max() > 0.5


def test_a_blend_only_adds_and_only_near_the_seam() -> None:
    parts = [
        Part(name="main", primitive=Primitive.ELLIPSOID, size=(0.4,) * 3, center=(s * 0.3, 0, 0))
        for s in (-1, 1)
    ]
    plain = pack(parts, (1.0, 0.0, 0.0))
    blend = [parts[0], Part(**{**vars(parts[1]), "blend": 0.2})]
    smooth = pack(blend, (1.0, 0.0, 0.0))
    points = _points(5000, 2)
    d_plain, d_smooth = signed_distance(plain, points), signed_distance(smooth, points)
    assert (d_smooth <= d_plain + 1e-12).all()
    assert (d_plain - d_smooth).max() == pytest.approx(0.05, rel=0.05)
    far = np.abs(points[:, 0]) > 0.6
    np.testing.assert_array_equal(d_plain[far], d_smooth[far])


def test_transforming_a_solid_moves_and_scales_its_distances() -> None:
    solid = build(SceneSpec(kind="mug", color="red"), np.random.default_rng(0))
    offset = np.array([0.1, 0.2, -0.3])
    moved = solid.transformed(1.7, offset)
    points = _points(3000, 3)
    near = np.abs(signed_distance(solid, points)) < 0.05
    np.testing.assert_allclose(
        signed_distance(moved, (points + offset) * 1.7)[near],
        1.7 * signed_distance(solid, points)[near],
        atol=1e-9,
    )


def test_the_nearest_part_gives_its_color() -> None:
    parts = [
        Part(name="main", primitive=Primitive.ELLIPSOID, size=(0.2,) * 3, center=(-0.5, 0, 0)),
        Part(name="b", primitive=Primitive.ELLIPSOID, size=(0.2,) * 3, center=(0.5, 0, 0),
             color=(0.0, 1.0, 0.0)),
    ]  # fmt: skip
    colors = surface_colors(pack(parts, (1.0, 0.0, 0.0)), np.array([[-0.3, 0, 0], [0.3, 0, 0]]))
    np.testing.assert_array_equal(colors, [[1, 0, 0], [0, 1, 0]])
