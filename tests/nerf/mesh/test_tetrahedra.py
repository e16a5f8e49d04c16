"""Marching tetrahedra: closed, outward, where the values vanish; and the surface that it trains."""

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nerf.mesh.deformable_surface import DeformableSurface, signed_values
from nerf.mesh.iso_surface import DensityGrid, EmptySurfaceError, extract_surface
from nerf.mesh.tetrahedra import march_tetrahedra, node_positions

R = 12


def mesh_of(vertices: Tensor, faces: Tensor) -> trimesh.Trimesh:
    return trimesh.Trimesh(vertices.detach().numpy(), faces.numpy(), process=False)


def noise_values() -> Tensor:
    """A random blob of several pieces, outside on the border."""
    values = torch.randn(R, R, R, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    border = torch.ones_like(values, dtype=torch.bool)
    border[1:-1, 1:-1, 1:-1] = False
    return torch.where(border, -1.0, values)


def test_any_values_give_a_closed_surface_that_encloses_its_inside() -> None:
    """Every edge has two faces that run along it in opposite directions; the volume is right.

    The enclosed volume is that of the piecewise linear interpolant's positive set, found here by
    counting random points of the same tetrahedra's interpolation.
    """
    values = noise_values()
    vertices, faces = march_tetrahedra(values, node_positions(R, like=values))
    mesh = mesh_of(vertices, faces)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    points = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    place = points * (R - 1)
    cell = place.floor().long().clamp(max=R - 2)
    order = (place - cell).argsort(dim=1, descending=True)
    fraction = (place - cell).gather(1, order)
    # Kuhn's interpolation: from corner to corner along the axes, the largest fraction first.
    at, found = cell.clone(), values[tuple(cell.T)]
    for step in range(3):
        before = values[tuple(at.T)]
        at = at.scatter_add(1, order[:, step : step + 1], torch.ones(len(at), 1, dtype=torch.long))
        found = found + fraction[:, step] * (values[tuple(at.T)] - before)
    assert mesh.volume == pytest.approx(8 * float((found > 0).double().mean()), rel=0.03)


def test_vertices_lie_where_a_plane_is_and_move_with_values_and_nodes() -> None:
    nodes = node_positions(6, like=torch.zeros(1, dtype=torch.float64)).requires_grad_()
    values = (0.13 - nodes.detach()[..., 0]).requires_grad_()
    vertices, _ = march_tetrahedra(values, nodes)
    torch.testing.assert_close(vertices[:, 0], torch.full_like(vertices[:, 0], 0.13))
    of_values, of_nodes = torch.autograd.grad(vertices[:, 0].mean(), [values, nodes])
    # All values up by e moves the plane by e; all nodes along x by e moves it by e too.
    assert of_values.sum().item() == pytest.approx(1.0)
    assert of_nodes[..., 0].sum().item() == pytest.approx(1.0)
    assert of_nodes[..., 1:].abs().max().item() == 0.0


def test_the_gradient_is_that_of_differences() -> None:
    values = (0.6 - node_positions(5, like=torch.zeros(1, dtype=torch.float64)).norm(dim=-1)) * 3
    surface = DeformableSurface(values)
    generator = torch.Generator().manual_seed(2)
    surface.shift.data.normal_(std=0.3, generator=generator)
    weights: Tensor | None = None

    def loss() -> Tensor:
        nonlocal weights
        vertices, _ = surface.mesh()
        if weights is None:
            weights = torch.randn(vertices.shape, generator=generator, dtype=torch.float64)
        return (vertices.square() * weights).sum()

    loss().backward()
    for parameter in (surface.values, surface.shift):
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = float((parameter.grad * direction).sum())
        found = []
        for step in (1e-6, -1e-6):
            parameter.data += step * direction
            found.append(float(loss().detach()))
            parameter.data -= step * direction
        assert (found[0] - found[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_a_density_becomes_the_surface_that_marching_cubes_finds() -> None:
    """Two balls, one of them a crumb that is left out, and a cavity that is filled."""
    nodes = node_positions(32, like=torch.zeros(1))
    ball = nodes.norm(dim=-1)
    shell = torch.minimum(0.6 - ball, ball - 0.2)
    crumb = 0.08 - (nodes - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1)
    height = torch.maximum(shell, crumb) * 20
    grid = DensityGrid(log_density=height.numpy())
    surface = DeformableSurface(signed_values(grid, 1.0))
    mesh = mesh_of(*surface.mesh())
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    reference = trimesh.Trimesh(*extract_surface(grid, 1.0), process=False)
    assert reference.body_count == 3
    # A value is the distance in cells.
    spacing = surface.spacing
    near = (surface.values.detach().abs() < 1.5) & (ball > 0.4) & (ball < 0.8)
    distance = (0.6 - ball) / spacing
    assert (surface.values.detach() - distance)[near].abs().max() < 0.15
    with pytest.raises(EmptySurfaceError, match="empty or fog"):
        signed_values(grid, 1e4)


def test_a_surface_of_nothing_is_an_empty_mesh_and_odd_shapes_are_refused() -> None:
    vertices, faces = DeformableSurface(torch.full((5, 5, 5), -1.0)).mesh()
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)
    closed = mesh_of(*DeformableSurface(torch.full((5, 5, 5), 1.0)).mesh())
    assert closed.is_watertight  # what reaches the border is closed there
    with pytest.raises(ValueError, match=r"\[R, R, R\]"):
        DeformableSurface(torch.zeros(5, 5, 4))
    with pytest.raises(ValueError, match=r"\[R, R, R\]"):
        march_tetrahedra(torch.zeros(3, 3, 3), torch.zeros(3, 3, 3))
