"""The memory of an occupancy grid on CUDA."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from nerf.cuda import launcher
from nerf.cuda.compiler import KernelSource

__all__ = ["SOURCE", "remember"]


class _Work(ctypes.Structure):
    """`Work` of occupancy.cu, field by field."""

    _fields_ = [
        ("cells", ctypes.c_void_p),
        ("density", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("remembered", ctypes.c_void_p),
        ("n_draws", ctypes.c_int64),
        ("n_cells", ctypes.c_int64),
        ("decay", ctypes.c_float),
    ]


SOURCE = KernelSource(name="occupancy.cu", defines=(("WORK_BYTES", ctypes.sizeof(_Work)),))


@torch.no_grad()
def remember(remembered: Tensor, cells: Tensor, density: Tensor, decay: float) -> None:
    """Let cells that were drawn remember max(decay * before, largest density drawn), in place.

    remembered: [cells of the grid], contiguous; cells: [N] int64; density: [N], not negative.
    """
    assert remembered.is_contiguous()
    cells, density = cells.contiguous(), density.contiguous()
    seen = torch.full_like(remembered, -1)
    work = _Work(
        cells=cells.data_ptr(),
        density=density.data_ptr(),
        seen=seen.data_ptr(),
        remembered=remembered.data_ptr(),
        n_draws=len(cells),
        n_cells=remembered.numel(),
        decay=decay,
    )
    kernels = launcher.kernels(SOURCE, remembered.device)
    kernels.launch("look", len(cells), 1, work)
    kernels.launch("remember", remembered.numel(), 1, work)
