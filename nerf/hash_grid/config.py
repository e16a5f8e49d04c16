"""Shape of a multiresolution hash grid, in tiny-cuda-nn's semantics.

Source: Instant-NGP (arXiv 2201.05989), section 3, and the numbers its released code derives from
the five settings. Resolutions and offsets follow that code's float32 arithmetic, so that a flat
table has the same layout here and there.
"""

import math
import numbers
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_LOG2_TABLE_SIZE = 24
MAX_RESOLUTION = 2**20


@dataclass(frozen=True, kw_only=True)
class GridLevel:
    """One level of the grid: where its entries lie in the flat table, and how points reach them.

    scale: cells per unit length; a point x in [0, 1] lies at grid position scale * x + 0.5.
    resolution: grid vertices along one axis.
    n_entries: feature vectors that the level owns.
    offset: index of its first feature vector, counted in feature vectors, not in floats.
    """

    scale: float
    resolution: int
    n_entries: int
    offset: int

    @property
    def hashed(self) -> bool:
        """Whether the level has more vertices than entries, so that vertices are hashed."""
        return self.n_entries < self.resolution**3


@dataclass(frozen=True, kw_only=True)
class HashGridConfig:
    """Settings of a multiresolution hash grid (Instant-NGP, arXiv 2201.05989, table 1).

    n_levels: L, the number of resolutions.
    n_features: F, features per entry: 1, 2, 4 or 8.
    log2_table_size: log2 of T, the most entries that one level may own.
    base_resolution: N_min, the resolution of the coarsest level.
    per_level_scale: b, the growth of the resolution from one level to the next, at least 1.

    Raises ValueError, naming the field, for a value out of range, and TypeError for one of the
    wrong type.
    """

    n_levels: int = 8
    n_features: int = 2
    log2_table_size: int = 15
    base_resolution: int = 16
    per_level_scale: float = 1.4473

    def __post_init__(self) -> None:
        for name in ("n_levels", "n_features", "log2_table_size", "base_resolution"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, not {value!r}.")
        if not 1 <= self.n_levels <= 32:
            raise ValueError(f"n_levels is {self.n_levels}; choose 1 to 32.")
        if self.n_features not in (1, 2, 4, 8):
            raise ValueError(f"n_features is {self.n_features}; choose 1, 2, 4 or 8.")
        if not 3 <= self.log2_table_size <= MAX_LOG2_TABLE_SIZE:
            raise ValueError(
                f"log2_table_size is {self.log2_table_size}; choose 3 to {MAX_LOG2_TABLE_SIZE}."
            )
        if self.base_resolution < 1:
            raise ValueError(f"base_resolution is {self.base_resolution}; choose 1 or more.")
        if isinstance(self.per_level_scale, bool) or not isinstance(
            self.per_level_scale, numbers.Real
        ):
            raise TypeError(f"per_level_scale must be a number, not {self.per_level_scale!r}.")
        if not (math.isfinite(self.per_level_scale) and self.per_level_scale >= 1):
            raise ValueError(
                f"per_level_scale is {self.per_level_scale}; choose a finite number from 1 up, "
                "such as 1.4473."
            )
        # In float64 and in logarithms: a wild setting must reach this message, not an overflow.
        log2_finest = (self.n_levels - 1) * math.log2(self.per_level_scale) + math.log2(
            self.base_resolution
        )
        if log2_finest > math.log2(MAX_RESOLUTION):
            raise ValueError(
                f"n_levels, base_resolution and per_level_scale give a finest resolution of "
                f"2^{log2_finest:.1f}, beyond 2^{int(math.log2(MAX_RESOLUTION))}, where float32 "
                "points no longer resolve a cell; lower one of the three."
            )

    @cached_property
    def levels(self) -> tuple[GridLevel, ...]:
        """The levels, coarsest first, with the resolutions and offsets of tiny-cuda-nn."""
        levels: list[GridLevel] = []
        offset = 0
        # Each operation rounded to float32, as in tiny-cuda-nn: for a growth of 1.5 the exact value
        # is a whole number, and the side that the rounding falls on decides the resolution. Not
        # numpy's own float32 functions: their last bit depends on the processor.
        log2_scale = np.float32(math.log2(np.float32(self.per_level_scale)))
        for level in range(self.n_levels):
            growth = np.float32(math.exp2(np.float32(level) * log2_scale))
            scale = growth * np.float32(self.base_resolution) - np.float32(1)
            resolution = int(np.ceil(scale)) + 1
            n_vertices = -(-(resolution**3) // 8) * 8
            n_entries = min(n_vertices, 2**self.log2_table_size)
            levels.append(
                GridLevel(
                    scale=float(scale), resolution=resolution, n_entries=n_entries, offset=offset
                )
            )
            offset += n_entries
        return tuple(levels)

    @property
    def out_dim(self) -> int:
        """Width of the encoding: n_levels * n_features."""
        return self.n_levels * self.n_features

    @property
    def n_parameters(self) -> int:
        """Floats in the flat table: every level's entries times n_features."""
        last = self.levels[-1]
        return (last.offset + last.n_entries) * self.n_features
