"""The torch reference against scalar arithmetic written out from the definitions."""

import math
import struct

import pytest
import torch
from torch import Tensor

from nerf.hash_grid import HashGridConfig
from nerf.hash_grid.reference import encode

# Three dense levels (4^3, 6^3 and 8^3 vertices) and two hashed ones (11^3, 15^3 into 2^9).
CONFIG = HashGridConfig(
    n_levels=5, n_features=2, log2_table_size=9, base_resolution=4, per_level_scale=1.4
)


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def encode_by_hand(point: list[float], table: list[float], config: HashGridConfig) -> list[float]:
    """One point, one Python number at a time, with no use of the config's derived values."""
    encoded = []
    offset = 0
    log2_scale = float32(math.log2(float32(config.per_level_scale)))
    for level in range(config.n_levels):
        growth = float32(2.0 ** float32(level * log2_scale))
        scale = float32(float32(growth * config.base_resolution) - 1)
        resolution = math.ceil(scale) + 1
        n_entries = min((resolution**3 + 7) // 8 * 8, 2**config.log2_table_size)
        position = [scale * x + 0.5 for x in point]
        cell = [math.floor(p) for p in position]
        fraction = [p - c for p, c in zip(position, cell, strict=True)]
        features = [0.0] * config.n_features
        for corner in range(8):
            weight = 1.0
            vertex = []
            for axis in range(3):
                bit = (corner >> axis) & 1
                weight *= fraction[axis] if bit else 1 - fraction[axis]
                vertex.append((cell[axis] + bit) % 2**32)
            x, y, z = vertex
            if n_entries < resolution**3:
                index = (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % n_entries
            else:
                index = (x + y * resolution + z * resolution**2) % 2**32 % n_entries
            for f in range(config.n_features):
                features[f] += weight * table[(offset + index) * config.n_features + f]
        encoded += features
        offset += n_entries
    return encoded


def random_table(config: HashGridConfig, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(config.n_parameters, dtype=torch.float64, generator=generator)


POINTS = [
    [0.1, 0.2, 0.3],
    [0.51, 0.97, 0.004],
    [0.77, 0.31, 0.62],
    [0.333, 0.999, 0.5],
    [0.0, 0.0, 0.0],
    [1.0, 1.0, 1.0],
    [1.0, 0.0, 0.5],
    [0.0, 1.0, 1.0],
    [-0.4, 1.3, 0.5],
    [2.5, -3.0, -0.01],
]


def test_the_test_grid_has_both_kinds_of_level() -> None:
    assert [level.hashed for level in CONFIG.levels] == [False, False, False, True, True]


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("n_features", [1, 2, 4])
def test_values_equal_scalar_arithmetic(point: list[float], n_features: int) -> None:
    config = HashGridConfig(
        n_levels=5, n_features=n_features, log2_table_size=9, base_resolution=4, per_level_scale=1.4
    )
    table = random_table(config)
    ours = encode(torch.tensor([point], dtype=torch.float64), table, config)
    by_hand = torch.tensor([encode_by_hand(point, table.tolist(), config)], dtype=torch.float64)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-13)


def test_a_constant_table_encodes_to_that_constant() -> None:
    # The weights of a cell sum to one, whichever entries its corners have.
    table = torch.full((CONFIG.n_parameters,), 3.25, dtype=torch.float64)
    points = torch.tensor(POINTS, dtype=torch.float64)
    encoded = encode(points, table, CONFIG)
    torch.testing.assert_close(encoded, torch.full_like(encoded, 3.25))


def test_a_dense_level_reproduces_a_linear_function() -> None:
    # A table that holds a + b x at each vertex is interpolated to a + b (scale x + 0.5).
    config = HashGridConfig(n_levels=1, n_features=1, log2_table_size=9, base_resolution=8)
    z, y, x = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 3, indexing="ij")
    table = (2 + 3 * x - 5 * y + 7 * z).flatten()
    points = torch.rand(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    points = points * 0.92  # away from the upper faces, where the outermost cell wraps around
    position = 7 * points + 0.5
    linear = 2 + position @ torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(encode(points, table, config).squeeze(1), linear)


def test_first_and_second_derivatives_by_finite_differences() -> None:
    config = HashGridConfig(
        n_levels=2, n_features=2, log2_table_size=5, base_resolution=3, per_level_scale=2.0
    )
    assert [level.hashed for level in config.levels] == [False, True]
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    table = random_table(config).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: encode(p, t, config), (points, table))
    assert torch.autograd.gradgradcheck(lambda p, t: encode(p, t, config), (points, table))


def test_no_points() -> None:
    table = random_table(CONFIG).requires_grad_()
    encoded = encode(torch.zeros(0, 3, dtype=torch.float64), table, CONFIG)
    assert encoded.shape == (0, CONFIG.out_dim)
    (grad,) = torch.autograd.grad(encoded.sum(), table)
    assert torch.count_nonzero(grad) == 0
