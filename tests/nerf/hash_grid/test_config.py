"""The grid's shape: derived resolutions, entries and offsets, and settings that are refused."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from nerf.hash_grid import HashGridConfig


def test_object_preset_levels_by_hand() -> None:
    # 16 * 1.4473^l - 1, rounded up, plus 1; n = min(next multiple of 8 of res^3, 2^15).
    config = HashGridConfig(
        n_levels=4, n_features=2, log2_table_size=15, base_resolution=16, per_level_scale=1.4473
    )
    assert [level.resolution for level in config.levels] == [16, 24, 34, 49]
    assert [level.n_entries for level in config.levels] == [16**3, 24**3, 2**15, 2**15]
    assert [level.offset for level in config.levels] == [
        0,
        4096,
        4096 + 13824,
        4096 + 13824 + 32768,
    ]
    assert [level.hashed for level in config.levels] == [False, False, True, True]
    for index, level in enumerate(config.levels):
        assert math.isclose(level.scale, 16 * 1.4473**index - 1, rel_tol=1e-6)
    assert config.out_dim == 8
    assert config.n_parameters == 2 * (4096 + 13824 + 2 * 32768)


def test_entries_of_a_dense_level_are_padded_to_eight() -> None:
    config = HashGridConfig(n_levels=1, base_resolution=5, log2_table_size=10)
    (level,) = config.levels
    assert level.resolution == 5
    assert level.n_entries == 128  # 125 vertices
    assert not level.hashed


def test_powers_of_two_give_exact_resolutions() -> None:
    config = HashGridConfig(n_levels=6, base_resolution=16, per_level_scale=2.0)
    assert [level.resolution for level in config.levels] == [16, 32, 64, 128, 256, 512]
    assert [level.scale for level in config.levels] == [15, 31, 63, 127, 255, 511]


def test_growth_of_one_repeats_the_base() -> None:
    config = HashGridConfig(n_levels=3, base_resolution=8, per_level_scale=1.0)
    assert [level.resolution for level in config.levels] == [8, 8, 8]
    assert [level.offset for level in config.levels] == [0, 512, 1024]


def test_scale_is_a_float32_number() -> None:
    for level in HashGridConfig(n_levels=16, per_level_scale=1.38).levels:
        assert float(np.float32(level.scale)) == level.scale


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_levels", 0),
        ("n_levels", 33),
        ("n_features", 3),
        ("log2_table_size", 2),
        ("log2_table_size", 25),
        ("base_resolution", 0),
        ("per_level_scale", math.nan),
        ("per_level_scale", math.inf),
        ("per_level_scale", 0.9),
        ("per_level_scale", 1e300),
    ],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(HashGridConfig(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_levels", 8.0), ("n_features", True), ("per_level_scale", "2"), ("base_resolution", None)],
)
def test_values_of_the_wrong_type_are_named(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=field):
        dataclasses.replace(HashGridConfig(), **{field: value})


def test_config_is_frozen_and_keyword_only() -> None:
    make: Any = HashGridConfig
    config = make(n_levels=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_levels = 4
    with pytest.raises(TypeError):
        make(8)
