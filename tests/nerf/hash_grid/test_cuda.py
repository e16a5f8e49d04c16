"""The CUDA hash grid against the reference: its kernels built for the host, and on a GPU."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import (
    GridLevel,
    HashGrid,
    HashGridConfig,
    cuda,
    module,
    reference,
    self_test,
)

# Dense and hashed levels, and a resolution that no power of two divides.
CONFIG = HashGridConfig(n_levels=4, log2_table_size=9, base_resolution=3, per_level_scale=1.7)


def _problem(
    dtype: torch.dtype, n_features: int = 2, n_points: int = 300, device: str = "cpu"
) -> tuple[HashGridConfig, Tensor, Tensor, Tensor]:
    """A grid, points with corners and faces of the cube among them, a table, and a gradient."""
    config = HashGridConfig(
        n_levels=CONFIG.n_levels,
        n_features=n_features,
        log2_table_size=CONFIG.log2_table_size,
        base_resolution=CONFIG.base_resolution,
        per_level_scale=CONFIG.per_level_scale,
    )
    g = torch.Generator().manual_seed(0)
    at = torch.rand(n_points, 3, generator=g, dtype=torch.float64)
    at[:8] = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], dtype=torch.float64)
    at[8:20, 0] = 0
    at[20:40, 1] = 1
    table = torch.randn(config.n_parameters, generator=g, dtype=torch.float64).to(dtype)
    grad = torch.randn(n_points, config.out_dim, generator=g, dtype=torch.float64).to(dtype)
    points = at.float().to(cuda.POINT_DTYPES[dtype])
    return config, points.to(device), table.to(device), grad.to(device)


def _everything(encode: Any, config: Any, points: Tensor, table: Tensor, grad: Tensor) -> Any:
    """Encoding, first derivatives, and the second ones of a loss on both first ones."""
    points, table, grad = (t.detach().requires_grad_() for t in (points, table, grad))
    encoded = encode(points, table, config)
    first = torch.autograd.grad(encoded, (points, table), grad, create_graph=True)
    g = torch.Generator().manual_seed(1)
    arriving = [torch.randn(t.shape, generator=g).to(t) for t in first]
    second = torch.autograd.grad(first, (points, table, grad), arriving)
    return [t.detach() for t in (encoded, *first, *second)]


NAMES = ["encoding", "points", "table", "points twice", "table twice", "grad twice"]


def _compare(dtype: torch.dtype, n_features: int, device: str, n_points: int, tol: float) -> None:
    config, points, table, grad = _problem(dtype, n_features, n_points, device)
    found = _everything(cuda.encode, config, points, table, grad)
    # In float64, from the same rounded numbers and in the cells that the points' dtype gives.
    wide = (points.double(), table.double(), grad.double())
    expected = _everything(reference.encode, config, *wide)
    for name, ours, exact in zip(NAMES, found, expected, strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < tol, f"{name}: {error:.2e}"
        assert exact.abs().max() > 0


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 1e-2)]
)
def test_values_and_derivatives_are_the_reference_ones(
    dtype: torch.dtype, tol: float, n_features: int
) -> None:
    _compare(dtype, n_features, "cpu", 300, tol)


def test_the_order_of_the_threads_does_not_matter(on_host: Any) -> None:
    config, points, table, grad = _problem(torch.float64)
    forward = _everything(cuda.encode, config, points, table, grad)
    on_host.backward(True)
    for one, other in zip(
        forward, _everything(cuda.encode, config, points, table, grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("on_host")
def test_gradients_that_are_views_and_tables_that_begin_anywhere() -> None:
    config, points, table, grad = _problem(torch.float32)
    expected = reference.encode(points, table, config)
    odd = torch.cat([torch.zeros(1), table])[1:]
    assert odd.data_ptr() % 8
    torch.testing.assert_close(cuda.encode(points, odd, config), expected)
    strided = torch.cat([points, points], dim=1)[:, :3]
    torch.testing.assert_close(cuda.encode(strided, table, config), expected)
    table.requires_grad_()
    for arriving in (
        grad,
        grad.t().contiguous().t(),
        grad[:1].expand_as(grad),
        grad[:, :1] + 0 * grad,
    ):
        (found,) = torch.autograd.grad(cuda.encode(points, table, config), table, arriving)
        (exact,) = torch.autograd.grad(reference.encode(points, table, config), table, arriving)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_host")
def test_no_points_and_points_that_are_no_numbers() -> None:
    config, points, table, grad = _problem(torch.float32)
    none = cuda.encode(points[:0], table.requires_grad_(), config)
    assert none.shape == (0, config.out_dim)
    (nothing,) = torch.autograd.grad(none.sum(), table)
    assert torch.count_nonzero(nothing) == 0
    lost = points[:4].clone()
    lost[0], lost[1], lost[2] = float("nan"), float("inf"), -1e30
    encoded = cuda.encode(lost, table, config)
    assert encoded[:2].isnan().all()
    assert encoded[3].isfinite().all()
    assert torch.autograd.grad(encoded, table, grad[:4])[0].shape == table.shape


@pytest.fixture
def chosen(on_host: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash grids of the CPU take the CUDA path, on the host."""
    monkeypatch.setattr(module, "choose_backend", lambda *_: ("cuda", "for a test"))


@pytest.mark.usefixtures("chosen")
def test_a_loss_on_normals_trains_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        g = torch.Generator().manual_seed(0)
        field = RadianceField(FieldConfig(hash_grid=CONFIG), generator=g)
        with torch.no_grad():
            field.encoding.table.add_(torch.randn(field.encoding.table.shape, generator=g))
        at = 1.6 * torch.rand(200, 3, generator=g) - 0.8
        density, albedo, normals = field.with_normals(at, create_graph=True)
        aim = torch.randn(200, 3, generator=g)
        loss = (normals * aim).sum() + density.sum() + albedo.square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(field.parameters()))]

    ours = gradients()
    monkeypatch.setattr(module, "choose_backend", lambda *_: ("torch", "for a test"))
    for found, exact in zip(ours, gradients(), strict=True):
        assert exact.abs().max() > 0
        assert (found - exact).abs().max() < 2e-4 * exact.abs().max()


@pytest.mark.usefixtures("chosen")
def test_a_float16_table_takes_float32_points() -> None:
    grid = HashGrid(CONFIG).half()
    _, points, table, _ = _problem(torch.float16)
    with torch.no_grad():
        grid.table.copy_(table)
    encoded = grid(points)
    assert encoded.dtype == torch.float16
    exact = reference.encode(points.double(), table.double(), CONFIG)
    assert (encoded.double() - exact).abs().max() < 1e-3 * exact.abs().max()
    # In float16 the points themselves are coarse; they are taken, as by plain torch.
    torch.testing.assert_close(
        grid(points.half()), reference.encode(points.half().float(), table, CONFIG)
    )


@pytest.mark.usefixtures("on_host")
def test_the_self_test_passes_and_finds_what_is_wrong() -> None:
    cpu = torch.device("cpu")
    assert self_test.fault(cuda.encode, cpu) is None

    def without_half_a_cell(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
        return reference.encode(points - 0.01, table, config)

    def in_half(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
        return reference.encode(points, table.half().to(table), config)

    def no_second(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
        encoded = reference.encode(points, table.detach(), config)
        return encoded + (reference.encode(points.detach(), table, config) - encoded.detach())

    def broken(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
        raise OSError("no such instruction\nand more")

    assert "the encoding is off by" in str(self_test.fault(without_half_a_cell, cpu))
    assert "the encoding is off by" in str(self_test.fault(in_half, cpu))
    assert "self-test failed" in str(self_test.fault(no_second, cpu))
    assert self_test.fault(broken, cpu) == "its self-test failed (OSError: no such instruction)"


@pytest.mark.usefixtures("on_host")
def test_what_does_not_compile_or_compute_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(cuda, "require_device", lambda _: None)
    load = cuda.load.__wrapped__
    assert load(cpu) == (True, "our CUDA kernels, which passed their self-test")
    with monkeypatch.context() as patched:
        patched.setattr(self_test, "fault", lambda *_: "its self-test failed (the table is off)")
        assert load(cpu)[1].endswith("are not used: its self-test failed (the table is off)")

    def missing(*_: object) -> None:
        raise CudaKernelsUnavailable("NVRTC is not installed")

    monkeypatch.setattr(cuda, "kernels", missing)
    assert load(cpu) == (False, "our CUDA kernels cannot be had: NVRTC is not installed")


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_self_test_is_of_the_tables_that_are_asked_for(
    dtype: torch.dtype, n_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert cuda.fault(cpu, n_features, dtype) is None
    launched: set[tuple[int, torch.dtype]] = set()
    encode = cuda.encode

    def off(points: Tensor, table: Tensor, config: HashGridConfig, *stored: Any) -> Tensor:
        launched.add((config.n_features, table.dtype))
        return encode(points, 1.1 * table, config, *stored)

    monkeypatch.setattr(cuda, "encode", off)
    assert "the encoding is off by" in str(cuda.fault(cpu, n_features, dtype))
    assert launched == {(n_features, dtype)}


def test_a_grid_asks_for_the_kernels_of_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(*kind: object) -> tuple[bool, str]:
        asked.append(kind[1:])
        return True, "for a test"

    monkeypatch.setattr(cuda, "load", load)
    device = torch.device("cuda")
    assert module.choose_backend("auto", device, torch.float16, 4)[0] == "cuda"
    HashGrid(HashGridConfig(n_levels=2, n_features=8, log2_table_size=8), "cuda")
    assert asked == [(4, torch.float16), (8, torch.float32)]
    with pytest.raises(ValueError, match='backend "cuda" computes float16'):
        module.choose_backend("cuda", device, torch.bfloat16, 1)
    assert asked[-1] == (1, torch.float32)


# --- a float32 table that is read as float16 ----------------------------------------------------


def _read_as_half(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
    return cuda.encode(points, table, config, torch.float16)


def _compare_read_as_half(n_features: int, device: str, n_points: int) -> None:
    config, points, table, grad = _problem(torch.float32, n_features, n_points, device)
    found = _everything(_read_as_half, config, points, table, grad)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    # Gradients pass as if nothing had been rounded: those of a table that is its own rounding.
    wide = (points.double(), table.half().double(), grad.double())
    expected = _everything(reference.encode, config, *wide)
    for name, ours, exact in zip(NAMES, found, expected, strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-5, f"{name}: {error:.2e}"
        assert exact.abs().max() > 0
    plain = reference.encode(points.double(), table.double(), config)
    assert (found[0].double() - plain).abs().max() > 1e-5  # it was rounded


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("n_features", [1, 2, 8])
def test_a_table_read_as_half_gives_float32_encodings_and_gradients(n_features: int) -> None:
    _compare_read_as_half(n_features, "cpu", 300)


@pytest.mark.gpu
@pytest.mark.parametrize("n_features", [1, 2, 8])
def test_on_a_gpu_a_table_read_as_half(n_features: int) -> None:
    _compare_read_as_half(n_features, "cuda", 4000)


@pytest.mark.usefixtures("on_host")
def test_gradients_far_below_what_float16_holds_are_kept() -> None:
    config, points, table, grad = _problem(torch.float32)
    table.requires_grad_()
    tiny = grad * 2.0**-40
    (ours,) = torch.autograd.grad(_read_as_half(points, table, config), table, tiny)
    (plain,) = torch.autograd.grad(cuda.encode(points, table, config), table, tiny)
    assert torch.count_nonzero(tiny.half()) == 0
    assert ours.abs().max() > 0
    assert torch.equal(ours, plain)


def test_only_float32_is_read_as_half() -> None:
    config, points, table, _ = _problem(torch.float64)
    with pytest.raises(ValueError, match="only float32 as half"):
        _read_as_half(points, table, config)


# --- at full size, where float32 itself is the limit -------------------------------------------

FULL = HashGridConfig(n_levels=16, log2_table_size=19)
SHORT = HashGridConfig(n_levels=16, log2_table_size=10)
"""The same levels, as fine as FULL's, with tables that a CPU is done with at once."""


def _position_error(level: GridLevel) -> float:
    """How far a float32 position in a level, scale * x + 0.5, is from the exact one, in cells.

    Two roundings, each of at most half a unit in the last place of what is below scale + 0.5:
    2^-12 of a cell at a scale of 4096.
    """
    return float(np.spacing(np.float32(level.scale + 0.5)))


def _full_size_errors_are_within_bounds(
    config: HashGridConfig, n_points: int, dtype: torch.dtype, device: str
) -> None:
    """The encoding and the table's gradient against float64, level by level.

    A weight is a product of three fractions in [0, 1] and moves by at most 3 e where each of these
    moves by e, `_position_error`; so does an entry's part of a point that falls on the other side
    of a cell's face, since the weights are continuous there. With T the largest feature, an
    encoding is thus off by at most 6 e T; and an entry's gradient by 3 e times the sum S of what
    arrives at it, and by n roundings of S where n points meet in it.
    """
    g = torch.Generator().manual_seed(0)
    points = torch.rand(n_points, 3, generator=g).to(device)
    table = torch.randn(config.n_parameters, generator=g).to(device, dtype).requires_grad_()
    grad = torch.randn(n_points, config.out_dim, generator=g).to(device, dtype)
    encoded = cuda.encode(points, table, config)
    (to_table,) = torch.autograd.grad(encoded, table, grad)
    exact_table = table.detach().double().requires_grad_()
    exact = reference.encode(points.double(), exact_table, config)
    (exact_grad,) = torch.autograd.grad(exact, exact_table, grad.double())
    unit = torch.finfo(dtype).eps / 2
    encoded, exact = encoded.detach(), exact.detach()
    largest, loudest = float(table.detach().abs().max()), float(grad.abs().max())
    for index, level in enumerate(config.levels):
        e, columns = _position_error(level), slice(2 * index, 2 * index + 2)
        off = (encoded[:, columns].double() - exact[:, columns]).abs().max()
        # Eight products, and the rounding to what is stored.
        assert off < (6 * e + 16 * 2**-24 + unit) * largest, index
        rows = slice(2 * level.offset, 2 * (level.offset + level.n_entries))
        n, total = _arrivals(points, grad[:, columns], level)
        # A few points within a rounding of a face arrive elsewhere.
        bound = (3 * e + (n + 8) * unit) * (total + 8 * loudest)
        assert (to_table[rows].double() - exact_grad[rows]).abs().max() < bound, index
        assert exact_grad[rows].abs().max() > 0
    # A worst case says little of float16 sums; their errors are roundings that mostly cancel.
    error = (to_table.double() - exact_grad).square().mean().sqrt()
    assert error < (2e-2 if dtype == torch.float16 else 2e-4) * exact_grad.square().mean().sqrt()


def _arrivals(points: Tensor, grad: Tensor, level: GridLevel) -> tuple[int, float]:
    """The most points that meet in an entry, and the largest sum of what arrives at one."""
    cell = (level.scale * points.double() + 0.5).floor().long()
    size = grad.double().abs().amax(dim=1)
    number = torch.zeros(level.n_entries, dtype=torch.float64, device=points.device)
    total = torch.zeros_like(number)
    for corner in range(8):
        shift = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=points.device)
        entry = reference.vertex_index(cell + shift, level)
        number.index_add_(0, entry, torch.ones_like(size))
        total.index_add_(0, entry, size)
    return int(number.max()), float(total.max())


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_errors_at_fine_levels_are_those_of_float32_positions(dtype: torch.dtype) -> None:
    _full_size_errors_are_within_bounds(SHORT, 2**11, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("n_points", [2**16, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu_at_full_size(dtype: torch.dtype, n_points: int) -> None:
    _full_size_errors_are_within_bounds(FULL, n_points, dtype, "cuda")


def _off_the_faces(config: HashGridConfig, n_points: int) -> Tensor:
    """Points whose float32 positions lie in the exact ones' cells, in every level."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(n_points, 3, generator=g)
    inside = torch.ones(n_points, dtype=torch.bool)
    for level in config.levels:
        fraction = (level.scale * points.double() + 0.5).frac()
        margin = 2 * _position_error(level)
        inside &= ((fraction > margin) & (fraction < 1 - margin)).all(dim=1)
    return points[inside]


def _derivatives_are_within_bounds(config: HashGridConfig, n_points: int, device: str) -> None:
    """First and second derivatives, which jump at the cells' faces, against float64 between them.

    Within a cell they are polynomials of the fractions, of degree two; 2^-12 of a cell moves them
    by at most four of their largest coefficients times that, and the sums are not that large.
    """
    points = _off_the_faces(config, n_points)
    assert len(points) > 0.9 * n_points
    g = torch.Generator().manual_seed(1)
    table = torch.randn(config.n_parameters, generator=g)
    grad = torch.randn(len(points), config.out_dim, generator=g)
    given = [tensor.to(device) for tensor in (points, table, grad)]
    found = _everything(cuda.encode, config, *given)
    expected = _everything(reference.encode, config, *(tensor.double() for tensor in given))
    for name, ours, exact in zip(NAMES, found, expected, strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < 4e-3, f"{name}: {error:.2e}"
        rms = (ours.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert rms < 1e-3, f"{name}: {rms:.2e}"


@pytest.mark.usefixtures("on_host")
def test_derivatives_at_fine_levels_are_those_of_float32_positions() -> None:
    _derivatives_are_within_bounds(SHORT, 2**10, "cpu")


@pytest.mark.gpu
def test_on_a_gpu_derivatives_at_full_size() -> None:
    _derivatives_are_within_bounds(FULL, 2**16, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2)]
)
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
def test_on_a_gpu_all_derivatives(dtype: torch.dtype, tol: float, n_features: int) -> None:
    _compare(dtype, n_features, "cuda", 4000, tol)


@pytest.mark.gpu
def test_on_a_gpu_a_graph_replays_the_encoding_and_its_gradient() -> None:
    config, points, table, grad = _problem(torch.float32, 2, 1000, "cuda")
    table.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        encoded = cuda.encode(points, table, config)
        return encoded, torch.autograd.grad(encoded, table, grad)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        points.uniform_()
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
