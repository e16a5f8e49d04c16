"""The radiance field: its two outputs, its box, its starting ball, its normals."""

import math

import pytest
import torch

from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig

GRID = HashGridConfig(n_levels=4, log2_table_size=10, base_resolution=4, per_level_scale=1.6)


def field(*, seed: int = 0, rough: float = 0.0, **kwargs) -> RadianceField:
    """A small field; `rough` adds random features, so that it is not just the ball."""
    backend = kwargs.pop("backend", "auto")
    g = torch.Generator().manual_seed(seed)
    made = RadianceField(FieldConfig(hash_grid=GRID, **kwargs), backend=backend, generator=g)
    with torch.no_grad():
        made.encoding.table.add_(rough * torch.randn(made.encoding.table.shape, generator=g))
    return made


def points(n: int = 200, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.8 - 0.9


def test_density_alone_is_the_density_and_computes_no_colour():
    made, at = field(rough=1.0), points()
    density, albedo = made(at)
    calls = []
    made.head.register_forward_hook(lambda *_: calls.append(1))
    alone = made.density(at)
    assert not calls
    torch.testing.assert_close(alone, density, rtol=1e-5, atol=1e-6)
    assert density.shape == (200,)
    assert albedo.shape == (200, 3)
    assert density.min() >= 0
    assert 0 < albedo.min() < albedo.max() < 1
    alone.sum().backward()
    assert made.head.weight.grad is not None
    assert made.head.weight.grad[0].any()
    assert not made.head.weight.grad[1:].any()


def test_nothing_is_outside_the_ball_and_it_learns_nothing_from_there():
    made = field(rough=1.0, half_extent=0.5)
    outside = torch.tensor([[0.51, 0.0, 0.0], [0.0, -0.7, 0.0], [0.1, 0.1, 3.0], [0.3, 0.3, 0.3]])
    assert (made.density(outside) == 0).all()
    made.density(outside).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())
    assert (made.density(torch.tensor([[0.5, 0.0, 0.0], [0.28, -0.28, 0.28]])) > 0).all()


def test_starts_as_an_opaque_ball_in_a_thin_haze():
    made = field()
    t = torch.linspace(-1, 1, 2001)
    through = torch.stack([torch.zeros_like(t), torch.zeros_like(t), t], dim=-1)
    beside = through + torch.tensor([0.0, 0.9, 0.0])
    with torch.no_grad():
        optical_depth = torch.trapezoid(made.density(through), t)
        haze = torch.trapezoid(made.density(beside), t)
        distance = torch.tensor([[r, 0.0, 0.0] for r in (0.0, 0.2, 0.4, 0.6, 0.9)])
        density = made.density(distance)
    assert optical_depth > 5  # less than one percent of the light passes
    assert 0 < haze < 0.3
    assert (density.diff() < 0).all()
    c = made.config
    expected = c.density_scale * math.log1p(math.exp(c.blob_logit))
    torch.testing.assert_close(density[0].item(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_normals_are_the_descent_direction_of_density(backend):
    made, at = field(rough=0.3, backend=backend).double(), 0.6 * points(50, dtype=torch.float64)
    step = 1e-6
    slope = [
        (made.density(at + step * axis) - made.density(at - step * axis)) / (2 * step)
        for axis in torch.eye(3, dtype=torch.float64)
    ]
    expected = -torch.nn.functional.normalize(torch.stack(slope, dim=-1), dim=-1)
    torch.testing.assert_close(made.normals(at), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        density, albedo, normals = made.with_normals(at)
    torch.testing.assert_close(normals, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close((density, albedo), made(at))
    assert not density.requires_grad
    assert not normals.requires_grad
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(50, dtype=torch.float64))


def test_normals_of_the_starting_ball_point_outward():
    at = points()
    outward = torch.nn.functional.normalize(at, dim=-1)
    near = at.norm(dim=-1) < 0.8
    assert near.sum() > 20
    assert ((field().normals(at) * outward).sum(dim=-1)[near] > 0.999).all()


def test_normals_carry_gradients_only_when_asked_to():
    made, at = field(rough=0.3), points()
    density, albedo, normals = made.with_normals(at, create_graph=False)
    assert density.requires_grad
    assert albedo.requires_grad
    assert not normals.requires_grad
    _, _, normals = made.with_normals(at, create_graph=True)
    normals[:, 0].sum().backward()
    assert made.encoding.table.grad is not None
    assert made.encoding.table.grad.any()
    assert made.hidden.weight.grad is not None
    assert made.hidden.weight.grad.any()


def test_generator_decides_every_parameter():
    same, again, other = field(seed=1), field(seed=1), field(seed=2)
    for a, b, c in zip(same.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.numel() <= 32 or not torch.equal(a, c)
    assert not torch.equal(same.encoding.table, other.encoding.table)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden_dim": 0}, "hidden_dim"),
        ({"color_channels": 0}, "color_channels"),
        ({"half_extent": 0.0}, "half_extent"),
        ({"density_scale": -1.0}, "density_scale"),
        ({"blob_radius": float("nan")}, "blob_radius"),
        ({"blob_logit": -5.0, "outside_logit": -4.0}, "blob_logit"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        FieldConfig(**arguments)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_chain_rule_by_hand_is_autograd_through_the_points(backend):
    made = field(rough=0.3, backend=backend).double()
    at = points(60, dtype=torch.float64) * 1.3  # some lie beyond the cube, more beyond the ball
    assert (at.abs() > 1).any()
    seen = made.normals(at, create_graph=True)
    leaf = at.clone().requires_grad_()
    hidden = torch.relu(made.hidden(made.encoding(((leaf + 1) / 2).clamp(0, 1))))
    c = made.config
    bump = torch.exp(-leaf.square().sum(-1) / (2 * c.blob_radius**2))
    logit = made.head(hidden)[:, 0] + (c.blob_logit - c.outside_logit) * bump
    (slope,) = torch.autograd.grad(logit.sum(), leaf, create_graph=True)
    expected = -torch.nn.functional.normalize(slope, dim=-1, eps=1e-12)
    torch.testing.assert_close(seen, expected)
    weight = torch.randn(60, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted = [made.encoding.table, made.hidden.weight, made.hidden.bias, made.head.weight]
    got = torch.autograd.grad((seen * weight).sum(), wanted)
    for found, exact in zip(
        got, torch.autograd.grad((expected * weight).sum(), wanted), strict=True
    ):
        assert exact.any() or found is got[2]  # a bias moves no slope between the kinks
        torch.testing.assert_close(found, exact)


def test_a_field_that_is_frozen_has_normals_too():
    made, at = field(rough=0.3), points()
    expected = made.normals(at)
    made.requires_grad_(False)
    assert torch.equal(made.normals(at), expected)
    assert torch.equal(made.with_normals(at)[2], expected)


def test_colours_of_any_channels_need_no_bound():
    made, at = field(rough=1.0, color_channels=5, bounded_colors=False), points()
    density, albedo = made(at)
    assert albedo.shape == (200, 5)
    assert albedo.min() < 0
    with torch.no_grad():
        made.head.weight *= 20
    _, stretched = made(at)
    assert stretched.max() > 1
    bounded = field(rough=1.0, color_channels=5)
    torch.testing.assert_close(bounded(at)[1], torch.sigmoid(albedo))
    torch.testing.assert_close(made.with_normals(at)[1], stretched)
    assert density.shape == (200,)
