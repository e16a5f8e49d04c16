"""The renderer against integrals known in closed form, and against a plain dense oracle."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig
from nerf.rendering import RenderConfig, Rendered, render
from nerf.sampling import intersect_aabb, march_reference
from nerf.shading import Lambertian

CUBE = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
EXACT: dict[str, Any] = {"transmittance_threshold": 0.0, "alpha_threshold": 0.0}


class Medium:
    """A density given as a formula, of one colour, with normals away from the origin."""

    aabb = CUBE

    def __init__(self, density: Callable[[Tensor], Tensor], colour=(0.2, 0.5, 0.9)) -> None:
        self.formula, self.colour, self.asked = density, torch.tensor(colour), 0

    def density(self, points: Tensor) -> Tensor:
        self.asked += len(points)
        return self.formula(points)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.formula(points), self.colour.to(points).expand_as(points)

    def with_normals(self, points: Tensor, *, create_graph: bool = False):
        return (*self(points), torch.nn.functional.normalize(points, dim=-1))


class Cells:
    def __init__(self, occupied: Tensor) -> None:
        self.occupied = occupied


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.full_like(points[:, 0], value)


def ball(points: Tensor) -> Tensor:
    return 200.0 * (points.norm(dim=-1) < 0.7)


def view(size: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    c2w = orbit_c2w(torch.tensor([20.0, 200.0], dtype=dtype), 15.0, 2.9)
    return camera_rays(c2w, 40.0, size, size)


def small_field(dtype: torch.dtype = torch.float64) -> RadianceField:
    """Uneven everywhere, and neither empty nor opaque."""
    g = torch.Generator().manual_seed(0)
    grid = HashGridConfig(n_levels=4, log2_table_size=10, base_resolution=4, per_level_scale=1.6)
    config = FieldConfig(hash_grid=grid, hidden_dim=8, density_scale=2.0, outside_logit=-1.0)
    made = RadianceField(config, generator=g)
    with torch.no_grad():
        made.encoding.table.add_(torch.randn(made.encoding.table.shape, generator=g))
    return made.to(dtype)


def dense_oracle(field: RadianceField, rays_o: Tensor, rays_d: Tensor, step: float) -> Tensor:
    """(rgb, opacity, mean distance) [R, 5] by a loop over rays and plain cumulative products."""
    rows = []
    samples = march_reference(rays_o, rays_d, aabb=CUBE, step_size=step)
    for ray in range(len(rays_o)):
        own = slice(int(samples.offsets[ray]), int(samples.offsets[ray + 1]))
        start, end = samples.t_starts[own], samples.t_ends[own]
        points = rays_o[ray] + ((start + end) / 2)[:, None] * rays_d[ray]
        density, albedo = field(points)
        alpha = 1 - torch.exp(-density * (end - start))
        light = torch.cumprod(torch.cat([alpha.new_ones(1), 1 - alpha]), 0)
        weights = light[:-1] * alpha
        opacity = weights.sum()
        distance = (weights * (start + end) / 2).sum() / opacity.clamp(min=1e-6)
        rgb = (weights[:, None] * albedo).sum(0) + light[-1] * 0.25
        rows.append(torch.cat([rgb, torch.stack([opacity, distance])]))
    return torch.stack(rows)


def channels(rendered: Rendered) -> Tensor:
    return torch.cat(
        [rendered.rgb, rendered.opacity[..., None], rendered.depth[..., None]], dim=-1
    ).reshape(-1, 5)


def test_constant_medium_is_exact_for_any_step():
    """opacity = 1 - exp(-density * way through the box): Beer and Lambert."""
    rays_o, rays_d = view()
    enter, leave = intersect_aabb(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), CUBE)
    expected = -torch.expm1(-0.8 * (leave - enter))
    assert expected.max() > 0.7
    for step in (0.5, 0.03):
        out = render(
            Medium(constant(0.8)), None, rays_o, rays_d, RenderConfig(step_size=step, **EXACT)
        )
        torch.testing.assert_close(out.opacity.flatten(), expected, atol=1e-12, rtol=0)


def order_of(errors: list[float]) -> float:
    """Mean slope of log2(error) when the step is halved each time."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def test_smooth_medium_converges_with_order_two():
    """density = 1 + z + 2 z^2: its optical depth is the integral of a polynomial."""
    rays_o = torch.tensor([[0.1, -0.2, 3.0]], dtype=torch.float64)
    rays_d = torch.nn.functional.normalize(torch.tensor([[0.05, 0.1, -1.0]]).double(), dim=-1)
    enter, leave = intersect_aabb(rays_o, rays_d, CUBE)
    ends = [(rays_o + t[:, None] * rays_d)[0, 2] for t in (enter, leave)]
    low, high = min(ends), max(ends)

    def antiderivative(z: Tensor) -> Tensor:
        return z + z**2 / 2 + 2 * z**3 / 3

    depth = (antiderivative(high) - antiderivative(low)) / rays_d[0, 2].abs()
    medium = Medium(lambda p: 1 + p[:, 2] + 2 * p[:, 2] ** 2)
    errors = []
    for pieces in (8, 16, 32, 64):
        step = (leave - enter).item() / pieces
        out = render(medium, None, rays_o, rays_d, RenderConfig(step_size=step, **EXACT))
        errors.append(abs(-torch.log1p(-out.opacity) - depth).item())
    assert order_of(errors) == pytest.approx(2.0, abs=0.05)


def test_ball_with_a_sharp_edge_converges_with_order_one():
    """opacity = 1 - exp(-density * chord), averaged over rays; the edge costs one order."""
    rays_o, rays_d = view(24)
    along = -(rays_o * rays_d).sum(dim=-1)
    beside = rays_o.square().sum(dim=-1) - along.square()
    chord = 2 * (0.7**2 - beside).clamp(min=0).sqrt()
    medium = Medium(lambda p: 1.5 * (p.norm(dim=-1) < 0.7))
    errors = []
    for step in (0.08, 0.04, 0.02, 0.01):
        out = render(medium, None, rays_o, rays_d, RenderConfig(step_size=step, **EXACT))
        errors.append((out.opacity + torch.expm1(-1.5 * chord)).abs().mean().item())
    assert chord.max() > 1.3
    assert order_of(errors) == pytest.approx(1.0, abs=0.15)


def test_values_and_gradients_equal_the_dense_oracle():
    field, (rays_o, rays_d) = small_field(), view(6)
    out = render(
        field,
        None,
        rays_o,
        rays_d,
        RenderConfig(step_size=0.1, **EXACT),
        background=torch.tensor(0.25).double(),
    )
    plain = dense_oracle(field, rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), 0.1)
    assert 0.1 < plain[:, 3].mean() < 0.95
    torch.testing.assert_close(channels(out), plain, atol=1e-10, rtol=1e-10)
    seed = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).double()
    parameters = list(field.parameters())
    ours = torch.autograd.grad(channels(out), parameters, seed)
    theirs = torch.autograd.grad(plain, parameters, seed)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(
    ("threshold", "bound"),
    # A ray may lose the light that was left, or as much for each of its samples.
    [
        ({"transmittance_threshold": 0.3}, 0.3),
        ({"alpha_threshold": 5e-2}, 5e-2 * 2 * math.sqrt(3) / 0.1),
    ],
)
def test_thresholds_change_the_image_by_no_more_than_they_say(threshold, bound):
    field, (rays_o, rays_d) = small_field(), view(10)
    with torch.no_grad():
        exact = render(field, None, rays_o, rays_d, RenderConfig(step_size=0.1, **EXACT))
        config = RenderConfig(step_size=0.1, **(EXACT | threshold))
        rough = render(field, None, rays_o, rays_d, config)
    assert 0 < len(rough.surface.samples) < len(exact.surface.samples)
    lost = exact.opacity - rough.opacity
    assert lost.max() > 0
    assert lost.min() > -1e-12
    assert lost.max() < bound


def test_nothing_behind_an_opaque_surface_is_asked_for():
    rays_o, rays_d = camera_rays(orbit_c2w(20.0, 15.0, 2.9), 12.0, 16, 16)  # all meet the ball
    medium = Medium(ball)
    out = render(medium, None, rays_o, rays_d, RenderConfig(step_size=0.02))
    assert (out.opacity > 0.999).all()
    lattice = march_reference(
        rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), aabb=CUBE, step_size=0.02
    )
    assert medium.asked < 0.5 * len(lattice)
    # 200 * 0.02 takes the light to 1e-4 in three samples at the most.
    assert 256 <= len(out.surface.samples) <= 3 * 256
    torch.testing.assert_close(out.rgb, medium.colour.expand_as(out.rgb), atol=2e-4, rtol=0)


def test_empty_cells_are_skipped_without_a_trace():
    rays_o, rays_d = view(16, torch.float32)
    centre = (torch.arange(16) + 0.5) / 8 - 1
    grid = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1)
    cells = Cells(grid.norm(dim=-1) < 0.7 + 0.11)  # half a cell's diagonal more than the ball
    marched, full = Medium(ball), Medium(ball)
    a = render(marched, cells, rays_o, rays_d)
    b = render(full, None, rays_o, rays_d)
    assert torch.equal(a.rgb, b.rgb)
    assert torch.equal(a.depth, b.depth)
    assert marched.asked < 0.5 * full.asked


def test_depth_and_normals_of_an_opaque_ball():
    rays_o, rays_d = view(24)
    out = render(
        Medium(ball), None, rays_o, rays_d, RenderConfig(step_size=0.01), with_normals=True
    )
    along = -(rays_o * rays_d).sum(dim=-1)
    beside = rays_o.square().sum(dim=-1) - along.square()
    inside = beside < 0.6**2
    entry = along - (0.7**2 - beside).clamp(min=0).sqrt()
    assert inside.sum() > 100
    assert (out.depth - entry)[inside].abs().max() < 0.02
    assert (out.opacity[inside] > 0.999).all()
    outside = beside > 0.72**2
    assert (out.opacity[outside] == 0).all()
    assert (out.depth[outside] == 0).all()
    assert out.normals is not None
    at = torch.nn.functional.normalize(rays_o + entry[..., None] * rays_d, dim=-1)
    assert ((out.normals * at).sum(-1)[inside] > 0.99).all()


def test_backgrounds_differ_by_view_and_show_where_the_object_does_not():
    rays_o, rays_d = view(12, torch.float32)
    background = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])[:, None, None]
    thin = Medium(lambda p: 3.0 * (p.norm(dim=-1) < 0.7))
    plain = render(thin, None, rays_o, rays_d)
    out = render(thin, None, rays_o, rays_d, background=background)
    assert out.images.shape == (2, 3, 12, 12)
    torch.testing.assert_close(out.images[1, 2, 0, 0].item(), 1.0)
    shine = (1 - out.opacity)[..., None] * background
    torch.testing.assert_close(out.rgb, plain.rgb + shine)
    assert 0.1 < out.opacity.max() < 0.999


def test_shader_lights_the_lit_side_only():
    rays_o, rays_d = view(16, torch.float32)
    lights = torch.tensor([[10.0, 0.0, 0.0], [-10.0, 0.0, 0.0]])
    white = Medium(ball, colour=(1.0, 1.0, 1.0))
    shader = Lambertian(light_position=lights, ambient=0.25, diffuse=0.75)
    out = render(white, None, rays_o, rays_d, RenderConfig(step_size=0.02), shader=shader)
    assert out.normals is not None
    hit = out.opacity > 0.999
    lit = out.normals[..., 0] * torch.tensor([1.0, -1.0])[:, None, None]
    expected = 0.25 + 0.75 * lit.clamp(min=0)
    torch.testing.assert_close(out.rgb[..., 1][hit], expected[hit], atol=0.08, rtol=0)
    assert out.rgb[hit].min() < 0.27
    assert out.rgb[hit].max() > 0.7


def test_normals_train_the_field_through_the_image_when_asked_to():
    field, (rays_o, rays_d) = small_field(torch.float32), view(8, torch.float32)
    shader = Lambertian(light_position=torch.tensor([[2.0, 2.0, 2.0]] * 2), textureless=True)
    grads = []
    for create_graph in (False, True):
        field.zero_grad()
        out = render(field, None, rays_o, rays_d, shader=shader, create_graph=create_graph)
        out.rgb.square().mean().backward()
        assert field.encoding.table.grad is not None
        grads.append(field.encoding.table.grad.clone())
    assert all(g.abs().max() > 0 for g in grads)
    assert (grads[0] - grads[1]).abs().max() > 0.01 * grads[1].abs().max()


def test_same_generator_same_image_and_bits():
    field, (rays_o, rays_d) = small_field(torch.float32), view(10, torch.float32)

    def run(seed: int) -> tuple[Tensor, Tensor]:
        field.zero_grad()
        g = torch.Generator().manual_seed(seed)
        out = render(field, None, rays_o, rays_d, generator=g)
        out.rgb.square().sum().backward()
        assert field.encoding.table.grad is not None
        return out.rgb.detach(), field.encoding.table.grad.clone()

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_rays_that_meet_nothing_show_the_background_and_still_backpropagate():
    field = small_field(torch.float32)
    rays_o = torch.tensor([[[[0.0, 5.0, 3.0]]]])
    rays_d = torch.tensor([[[[0.0, 0.0, -1.0]]]])
    out = render(field, None, rays_o, rays_d, background=torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(out.rgb.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert out.opacity.item() == 0
    out.rgb.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in field.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_renders_what_the_cpu_renders():
    rays_o, rays_d = view(16)
    cells = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.7
    results = []
    for device in ("cpu", "cuda"):
        field = small_field().to(device)
        at = Cells(cells.to(device))
        out = render(field, at, rays_o.to(device), rays_d.to(device), with_normals=True)
        out.rgb.square().sum().backward()
        assert out.normals is not None
        grads = [p.grad for p in field.parameters()]
        results.append([channels(out), out.normals, *(g for g in grads if g is not None)])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, atol=1e-8, rtol=1e-6)


def test_a_density_of_nan_shows():
    rays_o, rays_d = view(8, torch.float32)
    broken = Medium(lambda p: torch.where(p[:, 0] > 0.2, torch.nan, 1.0))
    out = render(broken, None, rays_o, rays_d)
    assert not torch.isfinite(out.rgb).all()
    assert torch.isfinite(out.rgb).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"transmittance_threshold": 1.0}, "transmittance_threshold"),
        ({"alpha_threshold": -0.1}, "alpha_threshold"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        RenderConfig(**arguments)


def test_each_channel_of_a_colour_is_rendered_as_if_it_were_alone():
    """The image is linear in the albedo, whatever the number of its channels."""
    rays_o, rays_d = view()
    colour = (0.2, -1.5, 3.0, 0.7)

    class Uneven(Medium):
        def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return self.formula(points), self.colour.to(points) * (1 + points[:, :1])

    config = RenderConfig(step_size=0.1, **EXACT)
    back = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=rays_o.dtype)
    together = render(
        Uneven(constant(0.8), colour),
        None,
        rays_o,
        rays_d,
        config,
        background=back,
        with_normals=True,
    )
    assert together.rgb.shape == (*rays_o.shape[:-1], 4)
    assert together.images.shape == (2, 4, 12, 12)
    for channel in range(4):
        alone = render(
            Uneven(constant(0.8), colour[channel : channel + 1]),
            None,
            rays_o,
            rays_d,
            config,
            background=back[channel],
            with_normals=True,
        )
        torch.testing.assert_close(alone.rgb[..., 0], together.rgb[..., channel])
        torch.testing.assert_close(alone.depth, together.depth)
        torch.testing.assert_close(alone.normals, together.normals)
