"""The CUDA hash grid against the reference: its kernels built for the host, and on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nerf.hash_grid import HashGridConfig, cuda, reference

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
