"""The kernels for rays, built for the host, against plain torch; and all of it on a GPU."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nerf.compositing import composite, composite_dense
from nerf.cuda import compositing, launcher, march, occupancy, rays
from nerf.cuda.compiler import KernelSource
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import Backend, HashGridConfig
from nerf.occupancy import OccupancyConfig, OccupancyGrid
from nerf.rendering import RenderConfig, Rendered, render
from nerf.sampling import Aabb, RaySamples, march_reference

CUBE: Aabb = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
BOX: Aabb = (-1.0, -0.5, -0.7, 0.9, 1.5, 0.6)


def bundle(n_rays: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
    """Rays from all around and from within, some along the axes and some that miss."""
    g = torch.Generator().manual_seed(seed)
    o = 5 * torch.rand(n_rays, 3, generator=g) - 2.5
    o[:50] *= 0.2
    target = 1.2 * torch.randn(n_rays, 3, generator=g)
    d = torch.nn.functional.normalize(target - o, dim=1)
    d[50:56] = torch.cat([torch.eye(3), -torch.eye(3)])
    o[53] = 0
    o[54] = torch.tensor([CUBE[0], 0.1, 3.0])  # in the plane of a face
    o[-1] = float("nan")
    return o, d, g


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("aabb", [CUBE, BOX])
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, None])
def test_the_march_is_the_plain_one_to_the_bit(
    aabb: Aabb, jittered: bool, share: float | None
) -> None:
    o, d, g = bundle()
    occupied = None if share is None else torch.rand(5, 9, 7, generator=g) < share
    jitter = torch.rand(len(o), generator=g) if jittered else None
    found = RaySamples(*march.march(o, d, aabb, 0.06, occupied, jitter, 0.1))
    expected = march_reference(
        o, d, aabb=aabb, step_size=0.06, occupied=occupied, jitter=jitter, near=0.1
    )
    assert (len(expected) == 0) == (share == 0.0)
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.ray_indices, expected.ray_indices)
    assert torch.equal(found.t_starts, expected.t_starts)
    assert torch.equal(found.t_ends, expected.t_ends)


def packed(seed: int = 0) -> tuple[RaySamples, Tensor, Tensor]:
    """Samples of rays of which some have none, with densities from haze to stone, and values."""
    o, d, g = bundle(120, seed)
    samples = march_reference(
        o, d, aabb=CUBE, step_size=0.15, occupied=torch.rand(6, 6, 6, generator=g) < 0.5
    )
    assert (samples.offsets.diff() == 0).any()
    density = 10 ** (4 * torch.rand(len(samples), generator=g) - 2)
    density[::7] = 0
    return samples, density, torch.randn(len(samples), 5, generator=g)


Made = tuple[Tensor, Tensor, Tensor]


def by_kernels(density: Tensor, values: Tensor, samples: RaySamples) -> Made:
    lengths = samples.t_ends - samples.t_starts
    return compositing.composite(density, values, lengths, samples.ray_indices, samples.offsets)


def with_gradients(
    form: Callable[[Tensor, Tensor, RaySamples], Made], dtype: torch.dtype
) -> list[Tensor]:
    samples, density, values = packed()
    samples = RaySamples(
        samples.ray_indices, samples.t_starts.to(dtype), samples.t_ends.to(dtype), samples.offsets
    )
    density = density.to(dtype).requires_grad_()
    values = values.to(dtype).requires_grad_()
    made = form(density, values, samples)
    g = torch.Generator().manual_seed(3)
    arriving = [torch.randn(part.shape, generator=g).to(dtype) for part in made]
    return [
        *(part.detach() for part in made),
        *torch.autograd.grad(made, (density, values), arriving),
    ]


@pytest.mark.usefixtures("on_host")
def test_compositing_and_its_gradient_are_the_dense_ones() -> None:
    found = with_gradients(by_kernels, torch.float32)
    expected = with_gradients(composite_dense, torch.float64)
    assert len(found) == 5
    for ours, exact in zip(found, expected, strict=True):
        assert exact.abs().max() > 0
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_host")
def test_no_samples_leave_the_background() -> None:
    samples = RaySamples(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0), torch.zeros(4).long()
    )
    density, values = torch.zeros(0, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    accumulated, transmittance, weights = by_kernels(density, values, samples)
    assert torch.equal(accumulated, torch.zeros(3, 3))
    assert torch.equal(transmittance, torch.ones(3))
    (accumulated.sum() + transmittance.sum() + weights.sum()).backward()
    assert density.grad is not None


@pytest.mark.usefixtures("on_host")
def test_a_ray_ends_where_no_light_is_left() -> None:
    samples, density, _ = packed()
    lengths = samples.t_ends - samples.t_starts
    keep, counts = compositing.visible(
        density, lengths, samples.offsets, transmittance_threshold=1e-2, alpha_threshold=1e-3
    )
    expected = torch.zeros(len(samples), dtype=torch.bool)
    for ray in range(samples.n_rays):
        optical_depth = 0.0
        for i in range(int(samples.offsets[ray]), int(samples.offsets[ray + 1])):
            tau = float(density[i] * lengths[i])
            lit, dense = math.exp(-optical_depth) > 1e-2, -math.expm1(-tau) >= 1e-3
            expected[i] = lit and dense
            optical_depth += tau
    assert torch.equal(keep, expected)
    assert 0 < int(keep.sum()) < len(samples)
    per_ray = torch.bincount(samples.ray_indices[keep], minlength=samples.n_rays)
    assert torch.equal(counts, per_ray)


def small_field(backend: Backend = "auto") -> RadianceField:
    g = torch.Generator().manual_seed(0)
    grid = HashGridConfig(n_levels=4, log2_table_size=10, base_resolution=4, per_level_scale=1.6)
    field = RadianceField(FieldConfig(hash_grid=grid), backend=backend, generator=g)
    with torch.no_grad():
        field.encoding.table.add_(0.3 * torch.randn(field.encoding.table.shape, generator=g))
    return field


def rendered_view(field: RadianceField, config: RenderConfig) -> tuple[Rendered, list[Tensor]]:
    device = field.head.bias.device
    o = torch.tensor([0.0, 0.0, 2.9], device=device).expand(1, 16, 16, 3)
    xy = torch.linspace(-0.35, 0.35, 16)
    d = torch.stack(torch.meshgrid(xy, xy, torch.tensor([-1.0]), indexing="ij"), -1)[:, :, 0]
    d = torch.nn.functional.normalize(d, dim=-1)[None].to(device)
    cells = OccupancyGrid(field.aabb, OccupancyConfig(resolution=8)).to(device)
    g = torch.Generator().manual_seed(4)
    out = render(*(field, cells, o, d, config), generator=g, with_normals=True, create_graph=True)
    assert out.normals is not None
    loss = out.rgb.square().sum() + out.depth.sum() + out.normals.square().sum()
    return out, list(torch.autograd.grad(loss, list(field.parameters())))


@pytest.mark.usefixtures("on_host")
def test_a_view_and_its_gradients_are_those_of_the_plain_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    field = small_field()
    plain, plain_grads = rendered_view(field, RenderConfig())
    monkeypatch.setattr(rays, "usable", lambda *_: True)
    launched: set[str] = set()
    kernels = launcher.kernels

    def watched(source: KernelSource, device: torch.device) -> launcher.Kernels:
        launched.add(source.name)
        return kernels(source, device)

    monkeypatch.setattr(launcher, "kernels", watched)
    ours, our_grads = rendered_view(field, RenderConfig())
    assert launched == {"march.cu", "compositing.cu"}
    assert torch.equal(ours.surface.samples.offsets, plain.surface.samples.offsets)
    for found, exact in zip(
        (ours.rgb, ours.opacity, ours.depth, *our_grads),
        (plain.rgb, plain.opacity, plain.depth, *plain_grads),
        strict=True,
    ):
        scale = exact.abs().max()
        assert scale > 0
        assert (found - exact).abs().max() < 1e-4 * scale
    launched.clear()
    rendered_view(field, RenderConfig(cuda_kernels=False))
    assert not launched


@pytest.mark.usefixtures("on_host")
def test_a_density_of_nan_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rays, "usable", lambda *_: True)
    field = small_field()
    with torch.no_grad():
        field.head.bias[0] = float("nan")
    o, d = torch.tensor([[0.0, 0.0, 2.9]]), torch.tensor([[0.0, 0.0, -1.0]])
    assert render(field, None, o[None], d[None]).rgb.isnan().all()


# --- the occupancy grid ------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [False, True])
def test_a_cell_remembers_the_largest_draw_in_any_order(on_host: Any, backward: bool) -> None:
    g = torch.Generator().manual_seed(0)
    before = torch.rand(64, generator=g)
    cells = torch.randint(48, (200,), generator=g)
    density = torch.rand(200, generator=g)
    density[:10] = 0
    expected = before.clone()
    for cell in cells.unique():
        expected[cell] = max(0.7 * before[cell], density[cells == cell].max())
    found = before.clone()
    occupancy.remember(before.clone(), cells, density, 0.7)  # builds it
    on_host.backward(backward)
    occupancy.remember(found, cells, density, 0.7)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, before)


@pytest.mark.usefixtures("on_host")
def test_updates_by_kernels_are_those_of_the_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 6

    def patchwork(points: Tensor) -> Tensor:
        """The same wherever in its cell a point is drawn."""
        cell = ((points + 1) * (side / 2)).floor()
        return ((cell * torch.tensor([1.0, 3.0, 7.0])).sum(dim=1) % 5) / 2

    def grid() -> OccupancyGrid:
        config = OccupancyConfig(resolution=side, update_every=2, warmup_steps=4, decay=0.5)
        return OccupancyGrid(CUBE, config)

    plain, ours = grid(), grid()
    for occupancies, by_ours in ((plain, False), (ours, True)):
        monkeypatch.setattr(rays, "usable", lambda *_, by_ours=by_ours: by_ours)
        g = torch.Generator().manual_seed(0)
        for step in range(4):  # every cell, while it warms up
            occupancies.update(step, patchwork, g)
    torch.testing.assert_close(ours.remembered_density, plain.remembered_density)
    assert torch.equal(ours.occupied, plain.occupied)
    assert 0 < int(ours.occupied.sum()) < side**3
    before = ours.remembered_density.clone()
    ours.update(4, lambda points: torch.zeros(len(points)), torch.Generator().manual_seed(1))
    after = ours.remembered_density
    halved = after == 0.5 * before
    assert (halved | (after == before)).all()
    # A quarter of the cells at random and a quarter of those that are occupied.
    assert 0 < int((halved & (before > 0)).sum()) < side**3
    again = grid()
    again.load_state_dict({**ours.state_dict(), "estimator.occs": before.flatten()})
    again.estimator.get_buffer("binaries").copy_(plain.estimator.get_buffer("binaries"))
    again.update(4, lambda points: torch.zeros(len(points)), torch.Generator().manual_seed(1))
    assert torch.equal(again.remembered_density, after)


# --- the self-test -----------------------------------------------------------------------------


@pytest.mark.usefixtures("on_host")
def test_the_self_test_passes_and_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert rays.fault(cpu) is None
    right = march.march

    def longer(*arguments: Any) -> tuple[Tensor, ...]:
        indices, t_starts, t_ends, offsets = right(*arguments)
        return indices, t_starts, t_ends + 0.01, offsets

    with monkeypatch.context() as patched:
        patched.setattr(march, "march", longer)
        assert "the march finds other intervals" in str(rays.fault(cpu))
    with monkeypatch.context() as patched:
        patched.setattr(compositing, "composite", lambda *a: (0 * a[1].sum(), a[0], a[0]))
        assert "self-test failed" in str(rays.fault(cpu))
    with monkeypatch.context() as patched:
        patched.setattr(occupancy, "remember", lambda *_: None)
        assert "the occupancy grid remembers other values" in str(rays.fault(cpu))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_rays_go_another_way() -> None:
    assert not rays.usable(torch.device("cpu"), torch.float32)
    assert not rays.usable(torch.device("cuda"), torch.float32)
    assert rays.load(torch.device("cuda"))[1].endswith("torch finds no CUDA device")


# --- the same at full size on a GPU, and small on the host -----------------------------------


def _many_samples(n_rays: int, step_size: float, device: str) -> tuple[RaySamples, Tensor, Tensor]:
    o, d, g = bundle(n_rays)
    samples = march_reference(
        *(o.to(device), d.to(device)),
        aabb=CUBE,
        step_size=step_size,
        occupied=(torch.rand(32, 32, 32, generator=g) < 0.4).to(device),
    )
    density = 10 ** (4 * torch.rand(len(samples), generator=g) - 2)
    values = torch.randn(len(samples), 7, generator=g)
    return samples, density.to(device), values.to(device)


def _compositing_is_the_dense_one(n_rays: int, step_size: float, device: str) -> None:
    samples, density, values = _many_samples(n_rays, step_size, device)
    wide = RaySamples(
        samples.ray_indices, samples.t_starts.double(), samples.t_ends.double(), samples.offsets
    )
    g = torch.Generator().manual_seed(3)
    arriving: list[Tensor] = []
    results = []
    for form, these, dtype in (
        (by_kernels, samples, torch.float32),
        (composite_dense, wide, torch.float64),
    ):
        given = [tensor.to(dtype).requires_grad_() for tensor in (density, values)]
        made = form(given[0], given[1], these)
        if not arriving:
            arriving = [torch.randn(part.shape, generator=g).to(device) for part in made]
        grads = torch.autograd.grad(made, given, [part.to(dtype) for part in arriving])
        results.append([*(part.detach() for part in made), *grads])
    for ours, exact in zip(*results, strict=True):
        # Products and sums of some hundred factors in float32.
        assert (ours.double() - exact).abs().max() < 2e-5 * exact.abs().max()
        assert exact.abs().max() > 0


def _visible_is_what_light_reaches(n_rays: int, step_size: float, device: str) -> None:
    samples, density, _ = _many_samples(n_rays, step_size, device)
    lengths = samples.t_ends - samples.t_starts
    keep, counts = compositing.visible(
        density, lengths, samples.offsets, transmittance_threshold=1e-2, alpha_threshold=1e-3
    )
    tau = density.double() * lengths.double()
    total = tau.cumsum(0) - tau
    light = torch.exp(-(total - total[samples.offsets[samples.ray_indices]]))
    alpha = -torch.expm1(-tau)
    expected = (light > 1e-2) & (alpha >= 1e-3)
    # Float32 may decide otherwise at the very edge.
    edge = ((light / 1e-2 - 1).abs() < 1e-3) | ((alpha / 1e-3 - 1).abs() < 1e-3)
    assert edge.float().mean() < 0.01
    assert torch.equal(keep[~edge], expected[~edge])
    assert 0.01 < float(keep.float().mean()) < 0.99
    per_ray = torch.bincount(samples.ray_indices[keep], minlength=samples.n_rays)
    assert torch.equal(counts, per_ray)


def _occupancy_is_the_plain_one(n_cells: int, n_draws: int, device: str) -> None:
    g = torch.Generator().manual_seed(0)
    before = torch.rand(n_cells, generator=g).to(device)
    cells = torch.randint(n_cells, (n_draws,), generator=g).to(device)
    density = torch.rand(n_draws, generator=g).to(device)
    seen = torch.full_like(before, -1).scatter_reduce(0, cells, density, "amax")
    expected = torch.where(seen >= 0, torch.maximum(before * 0.95, seen), before)
    found = before.clone()
    occupancy.remember(found, cells, density, 0.95)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert 0 < int((found == before).sum()) < n_cells


@pytest.mark.usefixtures("on_host")
def test_many_rays_and_cells_on_the_host() -> None:
    _compositing_is_the_dense_one(150, 0.03, "cpu")
    _visible_is_what_light_reaches(300, 0.03, "cpu")
    _occupancy_is_the_plain_one(16**3, 4000, "cpu")


@pytest.mark.gpu
def test_on_a_gpu_compositing_at_full_size() -> None:
    # The dense form pads all rays to the longest: some 0.2 GB for each tensor of values.
    _compositing_is_the_dense_one(2**15, 0.02, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_the_choice_of_samples_at_full_size() -> None:
    _visible_is_what_light_reaches(2**16, 0.01, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_the_occupancy_grid_at_full_size() -> None:
    _occupancy_is_the_plain_one(128**3, 2**20, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_view_with_normals_and_its_gradients() -> None:
    ours, our_grads = rendered_view(small_field("cuda").cuda(), RenderConfig())
    config = RenderConfig(cuda_kernels=False)
    plain, plain_grads = rendered_view(small_field("torch").cuda(), config)
    for found, exact in zip(
        (ours.rgb, ours.opacity, ours.depth, *our_grads),
        (plain.rgb, plain.opacity, plain.depth, *plain_grads),
        strict=True,
    ):
        assert (found - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.gpu
def test_on_a_gpu_everything_is_what_plain_torch_gives() -> None:
    device = torch.device("cuda")
    assert rays.load(device)[0], rays.load(device)[1]
    o, d, g = bundle(2**16)
    occupied = torch.rand(32, 32, 32, generator=g) < 0.2
    jitter = torch.rand(len(o), generator=g)
    moved = (o.to(device), d.to(device), CUBE, 0.02, occupied.to(device), jitter.to(device), 0.0)
    found = RaySamples(*march.march(*moved))
    expected = march_reference(
        *moved[:2], aabb=CUBE, step_size=0.02, occupied=moved[4], jitter=moved[5]
    )
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.t_starts, expected.t_starts)
    density = torch.rand(len(found), generator=g).to(device).requires_grad_()
    values = torch.rand(len(found), 7, generator=g).to(device).requires_grad_()
    results = []
    for kernels in (True, False):
        made = composite(density, values, found, cuda_kernels=kernels)
        loss = sum((part.square().sum() for part in made), start=density.new_zeros(()))
        results.append([*made, *torch.autograd.grad(loss, (density, values))])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
