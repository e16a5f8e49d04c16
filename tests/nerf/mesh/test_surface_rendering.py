"""Pictures of a mesh: those of the other renderer, with gradients that differences confirm."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nerf.cameras import orbit_c2w
from nerf.mesh.raster import Shading, render_mesh
from nerf.mesh.surface_rendering import opposite_faces, render_surface, surface_roughness
from nerf.mesh.textured_mesh import TexturedMesh, vertex_normals

FOVY_DEG = 40.0
BLACK = torch.zeros(3, dtype=torch.float64)


def ball(subdivisions: int = 3) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.6)
    return torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))


def white(points: Tensor, normals: Tensor, views: Tensor) -> Tensor:
    return torch.ones_like(points)


def test_pictures_are_those_of_the_supersampling_renderer() -> None:
    """Colour, depth order and soft edges, of two balls one behind the other."""
    vertices, faces = ball()
    near, far = vertices * 0.5 + torch.tensor([0.2, 0.1, 0.7]), vertices
    both = torch.cat([far, near])
    faces = torch.cat([faces, faces + len(vertices)])
    colors = torch.cat([0.5 + 0.5 * far, torch.tensor([[0.9, 0.1, 0.2]]).expand(len(near), 3)])
    c2w = orbit_c2w([20.0, 200.0], [15.0, -30.0], 2.9, dtype=torch.float64)

    def color(points: Tensor, normals: Tensor, views: Tensor) -> Tensor:
        on_near = (points - torch.tensor([0.2, 0.1, 0.7])).norm(dim=-1, keepdim=True) < 0.31
        return torch.where(on_near, torch.tensor([0.9, 0.1, 0.2]).double(), 0.5 + 0.5 * points)

    found = render_surface(both, faces, color, c2w, FOVY_DEG, 64, background=BLACK)
    numpy_faces, numpy_vertices = faces.numpy().astype(np.int32), both.numpy().astype(np.float32)
    mesh = TexturedMesh(
        vertices=numpy_vertices,
        faces=numpy_faces,
        normals=vertex_normals(numpy_vertices, numpy_faces),
        vertex_colors=colors.numpy().astype(np.float32),
    )
    flat = Shading(ambient=1.0, background=(0.0, 0.0, 0.0), supersampling=8)
    expected = torch.from_numpy(render_mesh(mesh, c2w.numpy(), FOVY_DEG, 64, 64, flat) / 255.0)
    error = (found.images.movedim(1, -1) - expected).abs()
    assert error.mean() < 0.004
    assert error.amax(-1).quantile(0.99) < 0.12
    assert found.pixels == pytest.approx(int((found.coverage > 0.5).sum()), rel=0.01)


def covered(vertices: Tensor, faces: Tensor, side: int = 48) -> Tensor:
    c2w = orbit_c2w([30.0], [20.0], 2.9, dtype=torch.float64)
    return render_surface(vertices, faces, white, c2w, FOVY_DEG, side, background=BLACK).coverage


def disc_pixels(radius: float, side: int = 48) -> float:
    """What a ball covers, in pixels: the cone that touches it has the sine radius / distance."""
    tangent = math.tan(math.asin(radius / 2.9)) / math.tan(math.radians(FOVY_DEG / 2))
    return math.pi * (tangent * side / 2) ** 2


def test_what_a_growing_ball_covers_grows_as_it_should() -> None:
    """The derivative of the covered area by the radius, which hard visibility would say is 0."""
    vertices, faces = ball()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    total = covered(vertices * scale, faces).sum()
    assert total.item() == pytest.approx(disc_pixels(0.6), rel=0.01)
    (slope,) = torch.autograd.grad(total, scale)
    expected = (disc_pixels(0.6006) - disc_pixels(0.5994)) / 0.002
    assert slope.item() == pytest.approx(expected, rel=0.03)


def test_a_moving_ball_loses_on_one_side_what_it_gains_on_the_other() -> None:
    vertices, faces = ball()
    up = torch.zeros((), dtype=torch.float64, requires_grad=True)
    c2w = orbit_c2w([0.0], [0.0], 2.9, dtype=torch.float64)
    moved = vertices + up * torch.tensor([0.0, 1.0, 0.0])
    picture = render_surface(moved, faces, white, c2w, FOVY_DEG, 48, background=BLACK).coverage[0]
    halves = [
        torch.autograd.grad(half.sum(), up, retain_graph=True)[0] for half in picture.split(24)
    ]
    assert halves[0].item() > 0
    assert (halves[0] + halves[1]).abs().item() < 0.02 * halves[0].item()
    # The upper half gains a strip as wide as the ball's picture. Seen from 2.9 away the ball turns
    # about the camera, and a tangent t of the angle grows by 1 + t^2 for each radian.
    tangent, focal = math.tan(math.asin(0.6 / 2.9)), 24 / math.tan(math.radians(FOVY_DEG / 2))
    gained = 2 * focal * tangent * focal * (1 + tangent**2) / 2.9
    assert halves[0].item() == pytest.approx(gained, rel=0.02)


def test_colours_and_shapes_gradients_are_those_of_differences() -> None:
    """Inside the silhouette, where visibility does not change with a small step."""
    vertices, faces = ball(2)
    generator = torch.Generator().manual_seed(3)
    light = torch.tensor([0.5, 0.7, 0.5], dtype=torch.float64)
    weights = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    weights[..., 12:20, 12:20] = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    c2w = orbit_c2w([10.0], [5.0], 2.9, dtype=torch.float64)

    def loss(vertices: Tensor) -> Tensor:
        def shader(points: Tensor, normals: Tensor, views: Tensor) -> Tensor:
            return torch.sin(3 * points) * (normals @ light)[:, None]

        images = render_surface(vertices, faces, shader, c2w, FOVY_DEG, 32, background=BLACK).images
        return (images * weights).sum()

    leaf = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = torch.randn(vertices.shape, generator=generator, dtype=torch.float64)
    step = 1e-7
    difference = loss(vertices + step * direction) - loss(vertices - step * direction)
    expected = float(difference) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_neighbours_across_edges_and_the_roughness_they_give() -> None:
    _, faces = ball(1)
    across = opposite_faces(faces)
    assert int(across.min()) >= 0
    for face in range(len(faces)):
        for corner in range(3):
            ends = {int(faces[face, corner]), int(faces[face, (corner + 1) % 3])}
            other = int(across[face, corner])
            assert other != face
            assert ends < set(faces[other].tolist())
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    halves = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert opposite_faces(halves).tolist() == [[-1, -1, 1], [0, -1, -1]]
    assert surface_roughness(square, halves).item() == pytest.approx(0.0)
    folded = square.clone()
    folded[3] = torch.tensor([0.5, 0.5, 1 / math.sqrt(2)])  # the second half upright
    assert surface_roughness(folded, halves).item() == pytest.approx(1.0, abs=1e-6)


def test_no_mesh_is_the_background() -> None:
    vertices = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    c2w = orbit_c2w([0.0], [0.0], 2.9, dtype=torch.float64)
    background = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    faces = torch.zeros(0, 3, dtype=torch.long)
    found = render_surface(vertices, faces, white, c2w, FOVY_DEG, 8, background=background)
    torch.testing.assert_close(found.images, background.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert not bool(found.coverage.any())
    assert surface_roughness(vertices, faces).item() == 0.0
