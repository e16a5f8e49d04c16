"""Regularisers against values worked out by hand, and their gradients through the field."""

import math

import pytest
import torch

from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig
from nerf.regularizers import normal_smoothness, opacity_entropy, orientation_loss

GRID = HashGridConfig(n_levels=4, log2_table_size=10, base_resolution=4, per_level_scale=1.6)


def rough_field(backend: str, *, double: bool = False) -> RadianceField:
    assert backend in ("numba", "torch")
    made = RadianceField(
        FieldConfig(hash_grid=GRID, hidden_dim=8),
        backend="numba" if backend == "numba" else "torch",
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        g = torch.Generator().manual_seed(1)
        made.encoding.table.add_(0.3 * torch.randn(made.encoding.table.shape, generator=g))
    return made.double() if double else made


def test_entropy_by_hand():
    assert opacity_entropy(torch.tensor([0.0, 1.0])).item() < 2e-4
    torch.testing.assert_close(opacity_entropy(torch.tensor([0.5, 0.5])), torch.tensor(1.0))
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    torch.testing.assert_close(opacity_entropy(torch.tensor([0.25])).item(), quarter)


def test_entropy_pushes_away_from_one_half_on_both_sides():
    opacity = torch.tensor([0.2, 0.5, 0.8], requires_grad=True)
    opacity_entropy(opacity).backward()
    assert opacity.grad is not None
    assert opacity.grad[0] > 0  # descending lowers it
    assert abs(opacity.grad[1]) < 1e-6
    assert opacity.grad[2] < 0
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    opacity_entropy(ends).backward()
    assert ends.grad is not None
    assert torch.isfinite(ends.grad).all()


def test_orientation_by_hand():
    weights = torch.tensor([0.5, 0.25, 0.25])
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0.6, 0, -0.8]])
    forward = torch.tensor([0.0, 0, -1]).expand(3, 3)
    # The first faces the camera; the others look away by cosines of 1 and 0.8.
    expected = (0.25 * 1 + 0.25 * 0.64) / 2
    torch.testing.assert_close(orientation_loss(weights, normals, forward, 2).item(), expected)
    assert orientation_loss(weights, -normals, forward, 2).item() == pytest.approx(0.5 / 2)


def test_orientation_turns_surfaces_and_does_not_hide_them():
    weights = torch.tensor([1.0], requires_grad=True)
    normals = torch.tensor([[0.0, 0.6, -0.8]], requires_grad=True)
    orientation_loss(weights, normals, torch.tensor([[0.0, 0.0, -1.0]]), 1).backward()
    assert weights.grad is None
    assert normals.grad is not None
    assert normals.grad[0, 2] < 0  # descending turns it back toward the camera, +Z


def test_no_samples_cost_nothing():
    none = torch.zeros(0, 3)
    assert orientation_loss(none[:, 0], none, none, 4) == 0
    g = torch.Generator()
    smooth = normal_smoothness(lambda p: p, none, none[:, 0], distance=0.1, generator=g)
    assert smooth == 0


def test_smoothness_is_zero_on_a_plane_and_right_on_a_fold():
    positions = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]]).repeat(2000, 1)
    weights = torch.tensor([0.2, 0.2, 0.6]).repeat(2000)
    up = torch.tensor([0.0, 1.0, 0.0])

    def run(normals_at) -> float:
        g = torch.Generator().manual_seed(0)
        return normal_smoothness(normals_at, positions, weights, distance=0.01, generator=g).item()

    assert run(lambda p: up.expand_as(p)) == 0

    def fold(p: torch.Tensor) -> torch.Tensor:
        return torch.where(p[:, :1] > 0, up, torch.tensor([0.0, 0.0, 1.0]))

    # Only the points on the crease (weight 0.6) meet the other side, half of the time; there the
    # squared distance of the two normals is 2.
    assert run(fold) == pytest.approx(0.6 * 0.5 * 2, abs=0.03)


@pytest.mark.parametrize("loss", ["orientation", "smoothness"])
def test_gradients_of_the_fast_encoding_equal_the_reference_ones(loss):
    """The second derivative of the encoding: a loss on normals must train the table."""
    g = torch.Generator().manual_seed(2)
    points = torch.rand(60, 3, generator=g, dtype=torch.float64) * 1.6 - 0.8
    weights = torch.rand(60, generator=g, dtype=torch.float64)
    directions = torch.randn(60, 3, generator=g, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    gradients = []
    for backend in ("numba", "torch"):
        field = rough_field(backend, double=True)
        if loss == "orientation":
            _, _, normals = field.with_normals(points, create_graph=True)
            value = orientation_loss(weights, normals, directions, 60)
        else:
            value = normal_smoothness(
                lambda p, field=field: field.normals(p, create_graph=True),
                points,
                weights,
                distance=0.05,
                generator=torch.Generator().manual_seed(3),
            )
        value.backward()
        gradients.append([field.encoding.table.grad, field.hidden.weight.grad])
    for fast, plain in zip(*gradients, strict=True):
        assert fast is not None
        assert plain is not None
        assert plain.abs().max() > 1e-6
        torch.testing.assert_close(fast, plain, rtol=1e-7, atol=1e-10)
