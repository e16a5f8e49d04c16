"""HashGrid: its choice of backend, its initial table, and what it refuses."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nerf.hash_grid
from nerf.hash_grid import HashGrid, HashGridConfig, choose_backend, reference, tinycudann
from nerf.hash_grid.module import Backend

CONFIG = HashGridConfig(n_levels=3, log2_table_size=9, base_resolution=4)
CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


@pytest.fixture(autouse=True)
def forget_tinycudann() -> Iterator[None]:
    tinycudann.load.cache_clear()
    tinycudann._encoding.cache_clear()
    tinycudann.works.cache_clear()
    yield
    tinycudann.load.cache_clear()
    tinycudann._encoding.cache_clear()
    tinycudann.works.cache_clear()


def points(n_points: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n_points, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_public_names() -> None:
    assert sorted(nerf.hash_grid.__all__) == [
        "Backend",
        "Chosen",
        "GridLevel",
        "HashGrid",
        "HashGridConfig",
        "backend_fault",
        "choose_backend",
    ]


def test_initial_table_is_small_uniform_and_seeded() -> None:
    grid = HashGrid(HashGridConfig())
    table = grid.table.detach()
    assert table.dtype == torch.float32
    assert table.shape == (HashGridConfig().n_parameters,)
    assert table.abs().max() <= 1e-4
    # The standard deviation of U(-a, a) is a / sqrt(3).
    torch.testing.assert_close(table.std(), torch.tensor(1e-4 / 3**0.5), rtol=0.01, atol=0)
    assert torch.equal(table, HashGrid(HashGridConfig()).table)
    other = HashGrid(HashGridConfig(), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(table, other.table)


@pytest.mark.parametrize("backend", ["auto", "numba", "torch"])
def test_every_backend_encodes_as_the_reference_does(backend: Backend) -> None:
    grid = HashGrid(CONFIG, backend).double()
    at = points(dtype=torch.float64)
    encoded = grid(at)
    assert encoded.shape == (20, grid.out_dim)
    assert encoded.is_contiguous()
    torch.testing.assert_close(encoded, reference.encode(at, grid.table, CONFIG))
    with torch.no_grad():
        assert not grid(at).requires_grad


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_point_gradient_of_every_backend(backend: Backend) -> None:
    grid = HashGrid(CONFIG, backend).double()
    at = points(dtype=torch.float64).requires_grad_()
    grad = torch.ones(20, grid.out_dim, dtype=torch.float64)
    (exact,) = torch.autograd.grad(reference.encode(at, grid.table, CONFIG), at, grad)
    slope = grid.point_gradient(at, grad)
    torch.testing.assert_close(slope.detach(), exact)
    slope.square().sum().backward()
    assert at.grad is None
    assert grid.table.grad is not None
    assert torch.count_nonzero(grid.table.grad) > 0
    with torch.no_grad():
        assert not grid.point_gradient(at, grad).requires_grad


def test_half_precision_falls_back_to_torch() -> None:
    grid = HashGrid(CONFIG).to(torch.bfloat16)
    assert grid(points(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_wrong_points_are_named() -> None:
    grid = HashGrid(CONFIG)
    with pytest.raises(ValueError, match=r"shape \[N, 3\], not \[4, 2\]"):
        grid(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"shape \[N, 3\], not \[2, 4, 3\]"):
        grid(torch.zeros(2, 4, 3))
    with pytest.raises(TypeError, match=r"float64 but the table is torch\.float32"):
        grid(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="on meta but the table is on cpu"):
        grid(torch.zeros(4, 3, device="meta"))
    with pytest.raises(ValueError, match=r"grad must have the shape \[4, 6\]"):
        grid.point_gradient(torch.zeros(4, 3), torch.zeros(4, 5))


def test_backends_are_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    assert choose_backend("auto", CPU)[0] == "numba"
    assert choose_backend("torch", CPU)[0] == "torch"
    assert choose_backend("auto", META)[0] == "torch"
    name, reason = choose_backend("auto", CUDA)
    assert name == "torch"
    assert "tinycudann is not installed" in reason


def test_impossible_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    unknown: Any = "triton"
    with pytest.raises(ValueError, match="choose one of"):
        HashGrid(CONFIG, unknown)
    with pytest.raises(ValueError, match='backend "numba"'):
        choose_backend("numba", CUDA)
    with pytest.raises(ValueError, match='backend "numba"'):
        choose_backend("numba", CPU, torch.float16)
    with pytest.raises(RuntimeError, match="tinycudann is not installed"):
        HashGrid(CONFIG, "tinycudann")


class _StandIn(ModuleType):
    """A tinycudann that computes by the reference, with the interface of its torch bindings."""

    def __init__(self, n_extra: int = 0) -> None:
        super().__init__("tinycudann")
        self.n_extra = n_extra

    def Encoding(
        self, n_input_dims: int, encoding_config: dict[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        assert n_input_dims == 3
        assert encoding_config["otype"] == "HashGrid"
        assert encoding_config["interpolation"] == "Linear"
        config = HashGridConfig(
            n_levels=encoding_config["n_levels"],
            n_features=encoding_config["n_features_per_level"],
            log2_table_size=encoding_config["log2_hashmap_size"],
            base_resolution=encoding_config["base_resolution"],
            per_level_scale=encoding_config["per_level_scale"],
        )
        n_parameters = config.n_parameters + self.n_extra

        class Encoding(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.params = nn.Parameter(torch.zeros(n_parameters, dtype=dtype))

            def forward(self, x: Tensor) -> Tensor:
                return reference.encode(x, self.params, config)

        return Encoding()


def test_tinycudann_computes_with_our_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", _StandIn())
    name, reason = choose_backend("auto", CUDA)
    assert name == "tinycudann"
    assert reason.startswith("tinycudann is installed; our CUDA kernels cannot be had: ")
    assert choose_backend("auto", CUDA, torch.float64)[0] == "torch"
    with pytest.raises(ValueError, match='backend "tinycudann" computes float32 tables on CUDA'):
        choose_backend("tinycudann", CPU)
    table = HashGrid(CONFIG, "tinycudann").table
    encoded = tinycudann.encode(points(), table, CONFIG)
    torch.testing.assert_close(encoded, reference.encode(points(), table, CONFIG))
    (grad,) = torch.autograd.grad(encoded.sum(), table)
    assert torch.count_nonzero(grad) > 0
    assert tinycudann.encode(points(0), table, CONFIG).shape == (0, CONFIG.out_dim)


def test_a_tinycudann_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", _StandIn(n_extra=8))
    table = HashGrid(CONFIG, "torch").table
    with pytest.raises(RuntimeError, match="lays out"):
        tinycudann.encode(points(), table, CONFIG)


def test_a_grid_that_overflows_in_tinycudann_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", _StandIn())
    config = HashGridConfig(n_levels=1, log2_table_size=22, base_resolution=2048)
    assert config.levels[0].hashed
    with pytest.raises(ValueError, match="log2_table_size"):
        tinycudann.encode(points(), torch.zeros(config.n_parameters), config)


def test_a_tinycudann_without_a_gpu_gives_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # It raises EnvironmentError while it is imported.
    (tmp_path / "tinycudann.py").write_text("raise EnvironmentError('Unknown compute capability')")
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    name, reason = choose_backend("auto", CUDA)
    assert name == "torch"
    assert "does not load (Unknown compute capability)" in reason


class _Shifted(_StandIn):
    """One whose points lie elsewhere in a cell, as in versions of other semantics."""

    def Encoding(
        self, n_input_dims: int, encoding_config: dict[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        encoding = super().Encoding(n_input_dims, encoding_config, dtype)
        forward = encoding.forward
        encoding.forward = lambda x: forward(x + 1e-3)
        return encoding


def test_a_tinycudann_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It is asked for on a device; the test's is the CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", _StandIn())
    assert tinycudann.works(CPU) == (True, "tinycudann is installed")
    tinycudann.load.cache_clear()
    tinycudann._encoding.cache_clear()
    tinycudann.works.cache_clear()
    monkeypatch.setitem(sys.modules, "tinycudann", _Shifted())
    works, reason = tinycudann.works(CPU)
    assert not works
    assert reason.startswith("tinycudann is not used: its self-test failed (the encoding is off by")


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_table_read_as_half_is_its_rounding_with_gradients_of_its_own(backend: Backend) -> None:
    config = HashGridConfig(n_levels=3, log2_table_size=9, base_resolution=4, per_level_scale=1.6)
    g = torch.Generator().manual_seed(0)
    grid = HashGrid(config, backend, read_as=torch.float16)
    rounded = HashGrid(config, backend)
    with torch.no_grad():
        grid.table.copy_(torch.randn(grid.table.shape, generator=g))
        rounded.table.copy_(grid.table.half())
    assert grid.table.dtype == torch.float32
    points = torch.rand(50, 3, generator=g)
    grad = torch.randn(50, grid.out_dim, generator=g) * 2.0**-30  # float16 would lose it
    for ask in (lambda one: one(points), lambda one: one.point_gradient(points, grad)):
        assert torch.equal(ask(grid), ask(rounded))
        ours, exact = (
            torch.autograd.grad(ask(one).sum() * 2.0**-20, one.table)[0] for one in (grid, rounded)
        )
        assert exact.abs().max() > 0
        assert torch.equal(ours, exact)
    assert not torch.equal(grid.table, rounded.table)
    assert torch.equal(HashGrid(config, backend, read_as=torch.float16).double()(points.double()),
                       HashGrid(config, backend).double()(points.double()))  # fmt: skip
    with pytest.raises(ValueError, match=r"read_as is torch\.bfloat16"):
        HashGrid(config, backend, read_as=torch.bfloat16)
