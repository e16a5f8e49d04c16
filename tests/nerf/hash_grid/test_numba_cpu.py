"""The CPU kernels against the torch reference: values, gradients, second derivatives, threads."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nerf.hash_grid import HashGridConfig, numba_cpu, reference

Encode = Callable[[Tensor, Tensor, HashGridConfig], Tensor]

# Float32 results are compared to the float64 reference relative to the largest entry.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def grid_config(n_features: int = 2) -> HashGridConfig:
    config = HashGridConfig(
        n_levels=4,
        n_features=n_features,
        log2_table_size=10,
        base_resolution=5,
        per_level_scale=1.6,
    )
    assert [level.hashed for level in config.levels] == [False, False, True, True]
    return config


def inputs(
    config: HashGridConfig, n_points: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Points away from cell faces (where derivatives jump), and a table, exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(2 * n_points + 64, 3, generator=generator)
    inside = torch.ones(len(points), dtype=torch.bool)
    for level in config.levels:
        fraction = (level.scale * points + 0.5).frac()
        inside &= ((fraction > 1e-3) & (fraction < 1 - 1e-3)).all(dim=1)
    points = points[inside][:n_points]
    assert len(points) == n_points
    table = torch.randn(config.n_parameters, generator=generator)
    return points.to(dtype), table.to(dtype)


def assert_near(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    scale = exact.abs().max().clamp(min=1)
    error = (ours.double() - exact.double()).abs().max() / scale
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e}"


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
def test_values_and_gradients_equal_the_reference(n_features: int, dtype: torch.dtype) -> None:
    config = grid_config(n_features)
    results: list[tuple[Tensor, ...]] = []
    for encode, run_dtype in ((reference.encode, torch.float64), (numba_cpu.encode, dtype)):
        points, table = inputs(config, 300, run_dtype)
        points.requires_grad_()
        table.requires_grad_()
        encoded = encode(points, table, config)
        torch.sin(3 * encoded).sum().backward()
        assert points.grad is not None
        assert table.grad is not None
        results.append((encoded.detach(), points.grad, table.grad))
    for exact, ours in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert exact.abs().max() > 0
        assert_near(ours, exact, dtype)


def normals_loss_gradients(
    encode: Encode, points: Tensor, table: Tensor, config: HashGridConfig
) -> tuple[Tensor, ...]:
    """Gradients of an orientation loss (arXiv 2112.03907, equation 11) to all it depends on."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(config.out_dim, generator=generator).to(points.dtype).requires_grad_()
    view = torch.randn(len(points), 3, generator=generator).to(points.dtype)
    points = points.clone().requires_grad_()
    table = table.clone().requires_grad_()
    density = torch.tanh(0.1 * (encode(points, table, config) @ weight))
    (slope,) = torch.autograd.grad(density.sum(), points, create_graph=True)
    facing = (-slope * view).sum(dim=1)
    loss = (density * facing.clamp(min=0) ** 2).mean() + (slope**2).sum(dim=1).mean()
    return (slope.detach(), *torch.autograd.grad(loss, (table, points, weight)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_features", [1, 2])
def test_a_loss_on_normals_trains_as_in_the_reference(n_features: int, dtype: torch.dtype) -> None:
    config = grid_config(n_features)
    exact = normals_loss_gradients(reference.encode, *inputs(config, 200, torch.float64), config)
    ours = normals_loss_gradients(numba_cpu.encode, *inputs(config, 200, dtype), config)
    for one, other in zip(exact, ours, strict=True):
        assert torch.count_nonzero(one) > 0
        assert torch.count_nonzero(other) > 0
        assert_near(other, one, dtype)


@pytest.mark.parametrize("n_features", [1, 2])
def test_point_gradient_equals_autograd(n_features: int) -> None:
    config = grid_config(n_features)
    points, table = inputs(config, 100, torch.float64)
    generator = torch.Generator().manual_seed(6)
    grad = torch.randn(100, config.out_dim, dtype=torch.float64, generator=generator)
    probe = torch.randn(100, 3, dtype=torch.float64, generator=generator)
    table.requires_grad_()
    grad.requires_grad_()
    leaf = points.clone().requires_grad_()
    (exact,) = torch.autograd.grad(
        reference.encode(leaf, table, config), leaf, grad, create_graph=True
    )
    ours = numba_cpu.point_gradient(points, table, grad, config)
    assert_near(ours.detach(), exact.detach(), torch.float64)
    for one, other in zip(
        torch.autograd.grad((exact.sin() * probe).sum(), (table, grad)),
        torch.autograd.grad((ours.sin() * probe).sum(), (table, grad)),
        strict=True,
    ):
        assert torch.count_nonzero(one) > 0
        assert_near(other, one, torch.float64)


def test_first_and_second_derivatives_by_finite_differences() -> None:
    config = HashGridConfig(
        n_levels=2, n_features=2, log2_table_size=5, base_resolution=3, per_level_scale=2.0
    )
    assert [level.hashed for level in config.levels] == [False, True]
    points, table = inputs(config, 3, torch.float64)
    points.requires_grad_()
    table.requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: numba_cpu.encode(p, t, config), (points, table))
    assert torch.autograd.gradgradcheck(
        lambda p, t: numba_cpu.encode(p, t, config), (points, table)
    )


def test_a_third_derivative_is_refused() -> None:
    config = grid_config()
    points, table = inputs(config, 10, torch.float64)
    points.requires_grad_()
    encoded = numba_cpu.encode(points, table, config).square().sum()
    (first,) = torch.autograd.grad(encoded, points, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_faces_of_the_cube_and_beyond(dtype: torch.dtype) -> None:
    config = grid_config()
    ends = torch.tensor([0.0, 1.0, 0.5, 1 - 2**-24, -0.3, 1.7], dtype=dtype)
    points = torch.cartesian_prod(ends, ends, ends)
    _, table = inputs(config, 0, dtype)
    for encode_dtype_table in (table, torch.ones_like(table)):
        exact = reference.encode(points, encode_dtype_table, config)
        ours = numba_cpu.encode(points, encode_dtype_table, config)
        assert_near(ours, exact, dtype)


def test_points_that_are_no_numbers_stay_inside_the_table() -> None:
    config = grid_config()
    points = torch.full((4, 3), float("nan"))
    points[1] = float("inf")
    points[2] = -1e30
    points[3] = 0.5
    _, table = inputs(config, 0, torch.float32)
    table.requires_grad_()
    encoded = numba_cpu.encode(points, table, config)
    assert encoded[:2].isnan().all()
    assert encoded[3].isfinite().all()
    encoded.sum().backward()
    assert table.grad is not None
    assert table.grad.shape == table.shape


def test_no_points() -> None:
    config = grid_config()
    points, table = inputs(config, 0, torch.float32)
    points.requires_grad_()
    table.requires_grad_()
    encoded = numba_cpu.encode(points, table, config)
    assert encoded.shape == (0, config.out_dim)
    (slope,) = torch.autograd.grad(encoded.sum(), points, create_graph=True)
    assert slope.shape == (0, 3)
    grad_table, grad_points = torch.autograd.grad(
        slope.sum() + encoded.sum(), (table, points), allow_unused=True
    )
    assert torch.count_nonzero(grad_table) == 0
    assert grad_points.shape == (0, 3)


def test_same_bits_on_every_run_and_any_number_of_threads(restore_threads: None) -> None:
    config = HashGridConfig()
    # More points than one thread is given, in blocks that do not come out even.
    points, table = inputs(config, 30_011, torch.float32)

    def run(n_threads: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(n_threads)
        return (
            numba_cpu.encode(points, table, config),
            *normals_loss_gradients_of_encoding(points, table, config),
        )

    first = run(1)
    for n_threads in (1, 2, 2, 3):
        for one, other in zip(first, run(n_threads), strict=True):
            assert torch.equal(one, other)


def normals_loss_gradients_of_encoding(
    points: Tensor, table: Tensor, config: HashGridConfig
) -> tuple[Tensor, ...]:
    """Every kernel's result, with no reduction of torch's whose order depends on the threads."""
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(len(points), config.out_dim, generator=generator).requires_grad_()
    direction = torch.randn(len(points), 3, generator=generator)
    points = points.clone().requires_grad_()
    table = table.clone().requires_grad_()
    encoded = numba_cpu.encode(points, table, config)
    slope, grad_table = torch.autograd.grad(encoded, (points, table), grad, create_graph=True)
    second = torch.autograd.grad(slope, (points, table, grad), direction)
    return (slope.detach(), grad_table.detach(), *second)


def test_inputs_of_any_stride() -> None:
    config = grid_config()
    points, table = inputs(config, 50, torch.float64)
    strided = torch.zeros(3, 100, dtype=torch.float64)
    strided[:, ::2] = points.T
    spread = torch.stack([table, table], dim=1)[:, 0]
    view = strided[:, ::2].T
    assert not view.is_contiguous()
    assert not spread.is_contiguous()
    assert torch.equal(
        numba_cpu.encode(view, spread, config), numba_cpu.encode(points, table, config)
    )


def test_compiled_loops_are_found_again_by_the_next_process(tmp_path: Path) -> None:
    program = """
import torch
from nerf.hash_grid import HashGrid, HashGridConfig, numba_kernels
grid = HashGrid(HashGridConfig(n_levels=2), "numba")
grid(torch.rand(8, 3)).sum().backward()
loops = numba_kernels.kernels(2, False)
print(sum(sum(loop.stats.cache_hits.values()) for loop in (loops.interpolate, loops.scatter)))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", program],
                env=environment,
                cwd=root,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits == [0, 2]
