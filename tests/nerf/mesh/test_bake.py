import sys

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nerf.cameras import orbit_c2w
from nerf.mesh.bake import (
    COLOR_RAY_SAMPLES,
    COLOR_RAY_START,
    COLOR_RAY_STEP,
    AtlasUnavailableError,
    NonFiniteColorError,
    bake_texture,
    color_vertices,
    evaluate_color,
    ray_color,
    texel_attributes,
)
from nerf.mesh.raster import Shading, render_mesh
from nerf.mesh.textured_mesh import TexturedMesh, weld

SIZE = 256
Surface = tuple[np.ndarray, np.ndarray]


def ramp(points: Tensor, normals: Tensor | None = None) -> Tensor:
    """A colour that is linear in position, so that texels and vertices can carry it exactly."""
    return 0.5 + 0.4 * points


@pytest.fixture(scope="module")
def sphere() -> Surface:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.8)
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


@pytest.fixture(scope="module")
def baked(sphere: Surface) -> TexturedMesh:
    return bake_texture(*sphere, ramp, texture_size=SIZE)


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip(uv[:, 1] * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    t = texture.astype(np.float64) / 255
    top = t[y0, x0] * (1 - fx) + t[y0, x1] * fx
    return top * (1 - fy) + (t[y1, x0] * (1 - fx) + t[y1, x1] * fx) * fy


def test_looking_up_any_surface_point_gives_the_fields_colour(baked):
    """Including points next to the charts' seams, where the dilated border is read."""
    assert baked.uv is not None
    assert baked.texture is not None
    rng = np.random.default_rng(1)
    face = rng.integers(len(baked.faces), size=20_000)
    weights = rng.dirichlet([0.3, 0.3, 0.3], size=len(face)).astype(np.float32)
    corners = baked.faces[face]
    position = np.einsum("nk,nki->ni", weights, baked.vertices[corners])
    uv = np.einsum("nk,nki->ni", weights, baked.uv[corners])
    error = np.abs(bilinear(baked.texture, uv) - ramp(torch.from_numpy(position)).numpy()).max(-1)
    assert np.quantile(error, 0.5) < 1.5 / 255
    # A seam texel takes its neighbour's colour: off by at most two texels' worth of the ramp.
    assert error.max() < 5 / 255


def test_no_texel_is_left_unpainted(baked):
    assert baked.texture is not None
    assert baked.texture.min() > 20, "the ramp on this sphere is nowhere below 0.18"
    assert baked.texture.max() < 255


def test_the_surface_is_the_same_after_unwrapping(sphere, baked):
    vertices, faces = sphere
    assert len(baked.vertices) > len(vertices), "a closed surface cannot be unwrapped uncut"
    welded_vertices, welded_faces = weld(baked.vertices, baked.faces)
    assert len(welded_vertices) == len(vertices)

    def corner_set(v: np.ndarray, f: np.ndarray) -> np.ndarray:
        # Rotate each face to begin with its smallest corner: the winding is kept.
        rank = np.unique(v, axis=0, return_inverse=True)[1].reshape(-1)[f]
        order = (rank.argmin(axis=1)[:, None] + np.arange(3)) % 3
        return np.unique(np.take_along_axis(rank, order, axis=1), axis=0)

    np.testing.assert_array_equal(np.unique(welded_vertices, axis=0), np.unique(vertices, axis=0))
    np.testing.assert_array_equal(
        corner_set(vertices, faces), corner_set(welded_vertices, welded_faces)
    )
    direction = baked.vertices / np.linalg.norm(baked.vertices, axis=1, keepdims=True)
    assert ((direction * baked.normals).sum(-1) > 0.999).all(), "smooth across the seams"


def test_texel_positions_lie_on_the_surface(baked):
    assert baked.uv is not None
    positions, covered = texel_attributes(baked.vertices, baked.faces, baked.uv, SIZE)
    assert covered.mean() > 0.4
    radius = np.linalg.norm(positions[covered], axis=1)
    assert radius.min() > 0.795
    assert radius.max() < 0.8005
    # v grows downward: a texel's own uv, read back through the texture, is its own colour.
    rows, columns = np.nonzero(covered)
    assert baked.texture is not None
    expected = np.round(ramp(torch.from_numpy(positions[rows, columns])).numpy() * 255)
    assert np.abs(baked.texture[rows, columns] - expected).max() <= 1


def test_texture_and_vertex_colours_look_alike(sphere: Surface, baked):
    plain = color_vertices(*sphere, ramp)
    c2w = orbit_c2w([0.0, 90.0, 200.0], [0.0, 40.0, -30.0], 2.9).numpy()
    flat = Shading(ambient=1.0, background=(0, 0, 0), supersampling=1)
    a, b = (render_mesh(m, c2w, 40.0, 96, 96, flat).astype(int) for m in (baked, plain))
    assert np.abs(a - b).max() <= 5
    assert np.abs(a - b).mean() < 0.6


def test_baking_is_deterministic(sphere: Surface, baked):
    again = bake_texture(*sphere, ramp, texture_size=SIZE)
    assert again.texture is not None
    np.testing.assert_array_equal(again.texture, baked.texture)
    np.testing.assert_array_equal(again.uv, baked.uv)


def test_colour_is_evaluated_in_chunks_with_unit_normals_and_checked():
    points = np.array([[0.9, 0, 0], [0, -0.2, 0.5], [0.1, 0.2, 0.3]], np.float32)
    normals = np.array([[2, 0, 0], [0, 0.5, 0], [0, 0, 1]], np.float32)
    calls: list[int] = []

    def color(p: Tensor, n: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert p.dtype == torch.float64
        calls.append(len(p))
        return p + n

    colors = evaluate_color(color, points, normals, chunk_points=2, dtype=torch.float64)
    assert calls == [2, 1]
    unit = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(colors, np.clip(points + unit, 0, 1), atol=1e-6)
    with pytest.raises(NonFiniteColorError, match="NaN"):
        evaluate_color(lambda p, n: p * torch.nan, points, normals)


def test_colour_is_what_a_camera_in_front_would_see():
    """A dense red core in a thin black haze: the level surface runs through the haze."""

    def density(p: Tensor) -> Tensor:
        return torch.where(p.norm(dim=-1) < 0.5, 150.0, 4.0)

    def albedo(p: Tensor) -> Tensor:
        red = torch.tensor([1.0, 0.2, 0.1], dtype=p.dtype)
        return torch.where(p.norm(dim=-1)[:, None] < 0.5, red, torch.zeros(3, dtype=p.dtype))

    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -0.5]]), dim=-1)
    surface = 0.53 * direction
    assert albedo(surface).max() == 0
    # The exact integral from the ray's start: haze of some thickness, then the opaque core.
    haze = 0.53 - COLOR_RAY_START - 0.5
    exact = np.exp(-4.0 * haze)
    color = ray_color(density, albedo)(surface, direction)[0].numpy()
    np.testing.assert_allclose(color, exact * np.array([1.0, 0.2, 0.1]), atol=0.04)
    assert color[0] > 0.7


def test_ray_colour_equals_the_sum_written_out():
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(40, 3, generator=generator, dtype=torch.float64) - 0.5
    normals = torch.nn.functional.normalize(
        torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=-1
    )

    def density(p: Tensor) -> Tensor:
        return 30 * torch.sigmoid(8 * torch.sin(9 * p).sum(-1))

    def albedo(p: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.cos(7 * p)

    expected = []
    for point, normal in zip(points, normals, strict=True):
        light, total, weights = 1.0, torch.zeros(3, dtype=torch.float64), 0.0
        for i in range(COLOR_RAY_SAMPLES):
            x = (point - (COLOR_RAY_START + (i + 0.5) * COLOR_RAY_STEP) * normal)[None]
            alpha = 1 - float(torch.exp(-density(x)[0] * COLOR_RAY_STEP))
            total, weights = total + light * alpha * albedo(x)[0], weights + light * alpha
            light *= 1 - alpha
        expected.append(total / weights if weights > 1e-2 else albedo(point[None])[0])
    got = ray_color(density, albedo)(points, normals)
    # Samples too faint to show, and what lies behind 99 % of opacity, are left out.
    assert (got - torch.stack(expected)).abs().max() < 0.02
    assert got.dtype == torch.float64


def test_empty_space_in_front_falls_back_to_the_surface_and_the_cube_is_not_left():
    edge = torch.tensor([[1.01, 0.0, 0.0]])
    outward = torch.tensor([[1.0, 0.0, 0.0]])

    def inside_only(p: Tensor) -> Tensor:
        assert p.abs().max() <= 1
        return ramp(p)

    def nothing(p: Tensor) -> Tensor:
        assert p.abs().max() <= 1
        return torch.zeros(len(p))

    color = ray_color(nothing, inside_only)(edge, outward)
    np.testing.assert_allclose(color.numpy(), [[0.9, 0.5, 0.5]], atol=1e-6)


def test_without_xatlas_the_error_names_the_way_out(sphere: Surface, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(AtlasUnavailableError, match='colors="vertex"'):
        bake_texture(*sphere, ramp, texture_size=64)
    assert color_vertices(*sphere, ramp).vertex_colors is not None
