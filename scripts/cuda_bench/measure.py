"""How scripts/bench_cuda.py measures: sizes, rows, medians, peaks, and memory that ends."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.out_of_memory import is_out_of_memory
from nerf.hash_grid import HashGridConfig

__all__ = ["GRID", "OUT_OF_MEMORY", "Row", "Setting", "copy_gb_s", "median_ms", "smoke", "timed"]

POINTS = (2**16, 2**18, 2**20)
GRID = HashGridConfig(
    n_levels=16, n_features=2, log2_table_size=19, base_resolution=16, per_level_scale=1.4473
)
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the benchmark; the defaults are those that figures are given for.

    small: networks of a few weights, a run of a few steps, a picture of a few pixels.
    """

    device: torch.device
    repeats: int = 30
    points: tuple[int, ...] = POINTS
    grid: HashGridConfig = GRID
    hidden_dim: int = 64
    side: int = 128
    latent_side: int = 64
    image_side: int = 512
    copy_bytes: int = 2**30
    small: bool = False
    out: Path = Path("outputs") / "bench_cuda"


def smoke(setting: Setting) -> Setting:
    """Sizes at which everything runs through in seconds on a CPU, and no figure means anything."""
    return replace(
        setting,
        repeats=2,
        points=(256,),
        grid=HashGridConfig(n_levels=2, log2_table_size=8, base_resolution=4),
        hidden_dim=8,
        side=8,
        latent_side=16,
        image_side=32,
        copy_bytes=2**16,
        small=True,
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        ms: The median; None where it failed.
        points: Points or rays.
        traffic_gb_s: What must be read and written at least once, by time.
        error: Largest difference from the reference, as a share of its largest value.
        over_teacher: The step's time as a multiple of its teacher's alone; the goal is 1.15.
        peak_gib: Most memory that torch held on the device at once, all that was there before
            included; None on the CPU.
        nerf_memory: Share of the step's peak that the teacher alone does not reach.
        failed: Why there is no figure.
    """

    part: str
    what: str
    points: int
    order: str = ""
    ms: float | None = None
    traffic_gb_s: float | None = None
    error: float | None = None
    over_teacher: float | None = None
    peak_gib: float | None = None
    nerf_memory: float | None = None
    failed: str | None = None

    def beside(self, teacher: Row) -> Row:
        """A step's row with what it is beside its teacher's."""
        ratio = self.ms / teacher.ms if self.ms is not None and teacher.ms else None
        share = None
        if self.peak_gib and teacher.peak_gib is not None:
            share = 1 - teacher.peak_gib / self.peak_gib
        return replace(self, over_teacher=ratio, nerf_memory=share)


def median_ms(run: Callable[[], object], setting: Setting) -> float:
    """Median milliseconds of warm repeats, by CUDA events; by the clock on the CPU."""
    on_cuda = setting.device.type == "cuda"
    for _ in range(min(5, setting.repeats)):
        run()
    times: list[float] = []
    for _ in range(setting.repeats):
        if on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def timed(
    setting: Setting, run: Callable[[], object], *, part: str, what: str, points: int, **rest: Any
) -> Row:
    """The row of `run`: its median and its peak, or that the memory does not suffice for it."""
    on_cuda = setting.device.type == "cuda"
    row = Row(part=part, what=what, points=points, **rest)
    try:
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(setting.device)
        ms = median_ms(run, setting)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = OUT_OF_MEMORY
    else:
        peak = torch.cuda.max_memory_allocated(setting.device) / 2**30 if on_cuda else None
        return replace(row, ms=ms, peak_gib=peak)
    # Beyond the handler, which holds what the error's frames hold.
    gc.collect()
    if on_cuda:
        torch.cuda.empty_cache()
    return replace(row, failed=failed)


def copy_gb_s(setting: Setting) -> float:
    """What a copy of 1 GiB reads and writes in a second."""
    source = torch.zeros(setting.copy_bytes, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source), setting) / 1e6
