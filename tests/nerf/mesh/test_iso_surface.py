import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nerf.mesh.iso_surface import (
    DensityGrid,
    EmptySurfaceError,
    NonFiniteDensityError,
    extract_surface,
    keep_large_components,
    sample_density,
)
from nerf.mesh.textured_mesh import (
    face_components,
    face_cross_products,
    signed_volume,
    surface_area,
)

STEEPNESS = 8.0


def density_of(distance: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A soft density that equals 1 where the signed distance is 0."""
    return lambda points: torch.exp(-STEEPNESS * distance(points))


def sphere(points: Tensor, radius: float = 0.7) -> Tensor:
    return points.norm(dim=-1) - radius


def torus(points: Tensor) -> Tensor:
    ring = points[:, [0, 2]].norm(dim=-1) - 0.55
    return torch.hypot(ring, points[:, 1]) - 0.25


def assert_closed_and_consistent(faces: np.ndarray) -> None:
    start = faces.reshape(-1)
    end = np.roll(faces, -1, axis=1).reshape(-1)
    forward = set(zip(start.tolist(), end.tolist(), strict=True))
    assert len(forward) == len(start), "a directed edge is used twice"
    assert forward == {(b, a) for a, b in forward}, "an edge lacks its opposite"


@pytest.mark.parametrize(
    ("distance", "volume", "area"),
    [
        (sphere, 4 / 3 * math.pi * 0.7**3, 4 * math.pi * 0.7**2),
        (torus, 2 * math.pi**2 * 0.55 * 0.25**2, 4 * math.pi**2 * 0.55 * 0.25),
    ],
)
def test_volume_and_area_converge_with_second_order(distance, volume, area):
    volume_errors, area_errors = [], []
    resolutions = (33, 65, 129)
    for resolution in resolutions:
        vertices, faces = extract_surface(sample_density(density_of(distance), resolution), 1.0)
        assert_closed_and_consistent(faces)
        assert signed_volume(vertices, faces) > 0
        volume_errors.append(abs(signed_volume(vertices, faces) / volume - 1))
        area_errors.append(abs(surface_area(vertices, faces) / area - 1))
    for errors in (volume_errors, area_errors):
        slope = np.polyfit(np.log([2 / (r - 1) for r in resolutions]), np.log(errors), 1)[0]
        assert slope > 1.7
    assert volume_errors[-1] < 2e-3
    assert area_errors[-1] < 2e-3


def test_normals_point_outward_and_coordinates_are_the_worlds():
    center = torch.tensor([0.3, -0.2, 0.1])
    radii = torch.tensor([0.5, 0.3, 0.2])
    grid = sample_density(density_of(lambda p: ((p - center) / radii).norm(dim=-1) - 1), 96)
    vertices, faces = extract_surface(grid, 1.0)
    np.testing.assert_allclose(vertices.max(axis=0), (center + radii).numpy(), atol=3e-3)
    np.testing.assert_allclose(vertices.min(axis=0), (center - radii).numpy(), atol=3e-3)
    middles = vertices[faces].mean(axis=1)
    outward = (middles - center.numpy()) / radii.numpy() ** 2
    cross = face_cross_products(vertices, faces)
    cosine = (cross * outward).sum(-1)
    big = np.linalg.norm(cross, axis=1) > 1e-7
    assert big.mean() > 0.9
    assert (cosine[big] > 0).all()


def test_a_field_that_fills_the_cube_is_closed_at_the_border():
    vertices, faces = extract_surface(
        sample_density(lambda p: torch.full((len(p),), 50.0), 17), threshold=5.0
    )
    assert_closed_and_consistent(faces)
    assert signed_volume(vertices, faces) == pytest.approx(8.0, rel=0.25)
    assert np.abs(vertices).max() < 1 + 2 / 16


def test_nodes_exactly_at_the_level_leave_no_crack():
    # A diamond whose corners, edges and faces all pass exactly through grid nodes.
    vertices, faces = extract_surface(
        sample_density(lambda p: torch.exp(8 * (0.5 - p.abs().sum(-1))), 33), threshold=1.0
    )
    assert_closed_and_consistent(faces)
    assert signed_volume(vertices, faces) == pytest.approx(4 / 3 * 0.5**3, rel=0.02)


def test_floaters_and_cavities_are_dropped_and_large_parts_kept():
    def distance(p: Tensor) -> Tensor:
        shell = torch.maximum(sphere(p, 0.5), -sphere(p, 0.3))
        floater = (p - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1) - 0.05
        part = (p - torch.tensor([-0.75, 0.0, 0.0])).norm(dim=-1) - 0.18
        return torch.minimum(torch.minimum(shell, floater), part)

    vertices, faces = extract_surface(sample_density(density_of(distance), 97), 1.0)
    assert face_components(len(vertices), faces).max() + 1 == 4
    kept_vertices, kept_faces = keep_large_components(vertices, faces, min_area_share=0.05)
    assert face_components(len(kept_vertices), kept_faces).max() + 1 == 2
    assert_closed_and_consistent(kept_faces)
    expected = 4 / 3 * math.pi * (0.5**3 + 0.18**3)
    assert signed_volume(kept_vertices, kept_faces) == pytest.approx(expected, rel=0.01)
    everything = keep_large_components(vertices, faces, min_area_share=0.0)[1]
    assert len(kept_faces) < len(everything) < len(faces)


def test_sampling_is_chunked_without_gradient_and_in_the_asked_precision():
    seen: list[tuple[int, bool, torch.dtype]] = []

    def density(points: Tensor) -> Tensor:
        seen.append((len(points), torch.is_grad_enabled(), points.dtype))
        return density_of(sphere)(points)

    whole = sample_density(density, 20, dtype=torch.float64)
    chunked = sample_density(density, 20, dtype=torch.float64, chunk_points=777)
    np.testing.assert_array_equal(whole.log_density, chunked.log_density)
    assert max(n for n, _, _ in seen[1:]) == 777
    assert sum(n for n, _, _ in seen[1:]) == 8000
    assert not any(grad for _, grad, _ in seen)
    assert {dtype for _, _, dtype in seen} == {torch.float64}


def test_a_damaged_or_empty_field_is_named():
    def damaged(points: Tensor) -> Tensor:
        return torch.where(points[:, 0] > 0.9, torch.nan, 1.0)

    with pytest.raises(NonFiniteDensityError, match="NaN or infinite"):
        sample_density(damaged, 16)
    grid = sample_density(lambda p: torch.zeros(len(p)), 16)
    with pytest.raises(EmptySurfaceError, match="below the threshold"):
        extract_surface(grid, 1.0)
    with pytest.raises(ValueError, match="threshold must lie"):
        extract_surface(DensityGrid(log_density=np.zeros((4, 4, 4), np.float32)), 0.0)
