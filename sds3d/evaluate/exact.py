"""The world's own solids in the frame of an exported mesh, and their exact surfaces.

The export's frame: +Y up, front +Z, resting on y = 0, centred in x and z, longest side 1. Cameras
look at the point (0, 1/2, 0) of it, so that "seen" coordinates are the export's less that point;
every mesh and every solid is moved by this one constant and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.measure import marching_cubes

from nerf.mesh.textured_mesh import TexturedMesh, vertex_normals
from sds3d.toybox.colors import COLORS
from sds3d.toybox.scenes import SceneSpec, build
from sds3d.toybox.shapes import Part, Primitive, Solid, pack
from sds3d.toybox.tracer import Light, signed_distance, surface_colors

LOOK_AT = np.array([0.0, 0.5, 0.0])
"""The point of the export's frame that the cameras look at."""

SIDE = 128
"""Grid points along an axis on which a solid's surface is found."""

_BLOCK = 4
_HALF_WIDTH = 0.97  # a little more than the radius of the sphere that holds every solid
_VARIATION_SEED = 7919


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Signed distances on a cubic grid.

    Attributes:
        values: [SIDE] * 3, those of `signed_distance` but far outside, where only the sign is.
        axis: [SIDE] coordinates of the points along each axis.
    """

    values: np.ndarray
    axis: np.ndarray


def sample_distance(solid: Solid) -> Samples:
    """Distances of a solid in [-0.97, 0.97]^3, computed in full but for blocks wholly outside."""
    axis = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, SIDE)
    step = axis[1] - axis[0]
    blocks = SIDE // _BLOCK
    centers = axis.reshape(blocks, _BLOCK).mean(1)
    grid = np.stack(np.meshgrid(centers, centers, centers, indexing="ij"), -1).reshape(-1, 3)
    coarse = signed_distance(solid, grid)
    # Outside, the distances are lower bounds. Inside they may exceed the true ones.
    reach = 1.01 * np.sqrt(3.0) * 0.5 * _BLOCK * step
    near = np.flatnonzero(coarse < reach)
    values = np.empty((blocks**3, _BLOCK**3))
    values[:] = coarse[:, None]
    offsets = (np.arange(_BLOCK) - 0.5 * (_BLOCK - 1)) * step
    inner = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), -1).reshape(-1, 3)
    points = (grid[near][:, None] + inner[None]).reshape(-1, 3)
    values[near] = signed_distance(solid, points).reshape(len(near), -1)
    cube = values.reshape(blocks, blocks, blocks, _BLOCK, _BLOCK, _BLOCK)
    cube = cube.transpose(0, 3, 1, 4, 2, 5).reshape(SIDE, SIDE, SIDE)
    return Samples(values=cube, axis=axis)


def bounds(solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner [3] of a solid's bounding box.

    About a point a little inside lies a ball inside, as large as its distance: the box of all
    these balls is exact for flat sides and errs by the square of the grid's step for round ones.
    """
    samples = sample_distance(solid)
    # Deep inside the world's distances are not exact.
    shallow = -2.0 * (samples.axis[1] - samples.axis[0])
    inside = np.argwhere((samples.values < 0) & (samples.values > shallow))
    points = samples.axis[inside]
    depth = -samples.values[tuple(inside.T)][:, None]
    return (points - depth).min(0), (points + depth).max(0)


def to_seen_frame(solid: Solid) -> Solid:
    """The solid as its exported mesh would stand, in the cameras' coordinates."""
    low, high = bounds(solid)
    anchor = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return solid.transformed(1.0 / float((high - low).max()), -anchor).transformed(1.0, -LOOK_AT)


def world_solid(spec: SceneSpec, variation: int) -> Solid:
    """One variation of a scene as the world makes it; the same number is the same shape."""
    return build(spec, np.random.default_rng([_VARIATION_SEED, variation]))


def exact_solid(spec: SceneSpec, variation: int) -> Solid:
    """The same variation in the cameras' coordinates."""
    return to_seen_frame(world_solid(spec, variation))


def sphere_solid(color: str) -> Solid:
    """A ball in the cameras' coordinates."""
    ball = Part(name="main", primitive=Primitive.ELLIPSOID, size=(0.5, 0.5, 0.5))
    return to_seen_frame(pack([ball], COLORS[color]))


def shaded_colors(solid: Solid, points: np.ndarray, light: Light | None = None) -> np.ndarray:
    """What the tracer shows at surface points [N, 3]: colour under the fixed light, [N, 3].

    The world's light moves with the object and nothing shines, so that a point looks the same from
    every side and its colour can be painted on a mesh. Steps and factors are the tracer's.
    """
    light = light or Light()
    direction = np.asarray(light.direction) / np.linalg.norm(light.direction)
    corners = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], np.float64)
    normal = np.zeros_like(points)
    for corner in corners:
        normal += corner * signed_distance(solid, points + 0.002 * corner)[:, None]
    normal /= np.sqrt((normal**2).sum(1, keepdims=True) + 1e-20)
    occlusion = np.ones(len(points))
    for i in range(2):
        reach = 0.05 + 0.09 * i
        distance = signed_distance(solid, points + reach * normal)
        occlusion -= 0.35 / (i + 1.0) * np.maximum(reach - distance, 0.0) / reach
    lambert = np.maximum(normal @ direction, 0.0)
    shade = light.ambient * (0.86 + 0.14 * normal[:, 1]) * occlusion
    shade += (1.0 - light.ambient) * lambert * 1.15
    painted = surface_colors(solid, points) * shade[:, None] + 0.02 * shade[:, None]
    return np.clip(painted, 0.0, 1.0)


def exact_mesh(solid: Solid, *, colored: bool = True) -> TexturedMesh:
    """The solid's surface in its own coordinates, with the tracer's colours on its vertices."""
    samples = sample_distance(solid)
    step = float(samples.axis[1] - samples.axis[0])
    vertices, faces, _, _ = marching_cubes(
        samples.values.astype(np.float32), 0.0, spacing=(step, step, step)
    )
    vertices = (vertices + samples.axis[0]).astype(np.float32)
    faces = np.ascontiguousarray(faces, np.int32)
    colors = shaded_colors(solid, vertices.astype(np.float64)) if colored else None
    return TexturedMesh(
        vertices=vertices,
        faces=faces,
        normals=vertex_normals(vertices, faces),
        vertex_colors=None if colors is None else colors.astype(np.float32),
    )
