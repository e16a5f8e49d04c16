"""The CUDA hash grid against the reference: its kernels built for the host, and on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGrid, HashGridConfig, cuda, module, reference, self_test

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


@pytest.mark.gpu
@pytest.mark.parametrize("n_points", [2**16, 2**18])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-4), (torch.float16, 5e-2)])
def test_on_a_gpu_at_full_size(dtype: torch.dtype, tol: float, n_points: int) -> None:
    config = HashGridConfig(n_levels=16, log2_table_size=19)
    g = torch.Generator().manual_seed(0)
    points = torch.rand(n_points, 3, generator=g).cuda()
    table = torch.randn(config.n_parameters, generator=g).to("cuda", dtype).requires_grad_()
    grad = torch.randn(n_points, config.out_dim, generator=g).to("cuda", dtype)
    encoded = cuda.encode(points, table, config)
    (to_table,) = torch.autograd.grad(encoded, table, grad)
    exact_table = table.detach().double().requires_grad_()
    exact = reference.encode(points.double(), exact_table, config)
    (exact_grad,) = torch.autograd.grad(exact, exact_table, grad.double())
    for found, wanted in ((encoded, exact), (to_table, exact_grad)):
        # A point within a rounding of a cell's face lies in another cell in float64; the encoding
        # is continuous there.
        assert (found.double() - wanted).abs().max() < tol * wanted.abs().max()


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
