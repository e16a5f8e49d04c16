"""The hash grid on CUDA: our own kernels, compiled by NVRTC, as a twice differentiable function.

Tables are float32, float16 or float64. Points are float32, and float64 for a float64 table: of a
fine level's cells float16 would know few apart. A float16 table gives a float16 encoding and takes
a float16 gradient, both computed in float32; what many points add to one entry of its gradient is
added in float16, as in tiny-cuda-nn. A float32 table may be read as float16 (`stored`): half the
memory traffic of the lookups, while the encoding, all gradients and what is trained stay float32.
It is rounded whole at the first lookup after each change (`nerf.hash_grid.rounded`).

The encoding lies in memory column by column, [out_dim, N] seen as [N, out_dim]: neighbouring
threads then write to neighbouring places, and a matrix product takes either layout as it is.

Additions to the table happen in the order in which the threads come, so that gradients differ in
their last bits from run to run.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial

import torch
from torch import Tensor

from nerf.cuda import probe
from nerf.cuda.compiler import KernelSource
from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.launcher import kernels, require_device
from nerf.hash_grid import differentiable, rounded, self_test
from nerf.hash_grid.config import HashGridConfig

__all__ = ["POINT_DTYPES", "encode", "fault", "load", "point_gradient", "source"]

POINT_DTYPES = {
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""Dtype of the points for each dtype of a table."""

MAX_LEVELS = 32

_C_TYPES = {torch.float32: "float", torch.float16: "Half", torch.float64: "double"}


class _Level(ctypes.Structure):
    _fields_ = [
        ("scale", ctypes.c_float),
        ("resolution", ctypes.c_uint32),
        ("n_entries", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("hashed", ctypes.c_uint32),
    ]


class _Work(ctypes.Structure):
    """`Work` of hash_grid.cu, field by field."""

    _fields_ = [
        ("points", ctypes.c_void_p),
        ("directions", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("n_points", ctypes.c_int64),
        ("grad_point_stride", ctypes.c_int64),
        ("grad_column_stride", ctypes.c_int64),
        ("out_point_stride", ctypes.c_int64),
        ("out_column_stride", ctypes.c_int64),
        ("n_levels", ctypes.c_int32),
        ("levels", _Level * MAX_LEVELS),
    ]


@cache
def load(
    device: torch.device, n_features: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[bool, str]:
    """Whether the kernels for such tables work on a CUDA device, and a sentence on why.

    The first call for a device and a kind of table compiles and loads them and compares them with
    the reference, in a process of their own where that can be had: a kernel may take its process
    with it.
    """
    try:
        require_device(device)
        looked = probe.verdict("hash grid", device, (n_features, dtype))
        if looked.fault is None:
            kernels(source(n_features, dtype), device)
    except CudaKernelsUnavailable as error:
        return False, f"our CUDA kernels cannot be had: {error}"
    wrong = looked.fault if looked.known else fault(device, n_features, dtype)
    if wrong is not None:
        return False, f"our CUDA kernels are not used: {wrong}"
    return True, "our CUDA kernels, which passed their self-test"


def fault(
    device: torch.device, n_features: int = 2, dtype: torch.dtype = torch.float32
) -> str | None:
    """What is wrong with the kernels' results on a device, in plain words; None if nothing.

    Of tables of n_features and a dtype; float32 ones as they are and read as float16.
    """
    wrong = self_test.fault(encode, device, dtype, n_features)
    if wrong is not None or dtype != torch.float32:
        return wrong
    half = partial(encode, stored=torch.float16)
    return self_test.fault(half, device, dtype, n_features, torch.float16)


@cache
def source(n_features: int, dtype: torch.dtype, encoded: torch.dtype | None = None) -> KernelSource:
    """What is compiled for tables of n_features and a dtype; encodings are of it or `encoded`."""
    encoded = dtype if encoded is None else encoded
    return KernelSource(
        name="hash_grid.cu",
        defines=(
            ("FEATURES", n_features),
            ("SCALAR", _C_TYPES[POINT_DTYPES[dtype]]),
            ("STORED", _C_TYPES[dtype]),
            ("ENCODED", _C_TYPES[encoded]),
            ("WORK_BYTES", ctypes.sizeof(_Work)),
        ),
    )


@cache
def _levels(config: HashGridConfig) -> ctypes.Array[_Level]:
    rows = [
        _Level(level.scale, level.resolution, level.n_entries, level.offset, level.hashed)
        for level in config.levels
    ]
    return (_Level * MAX_LEVELS)(*rows)


def _aligned(table: Tensor, config: HashGridConfig) -> Tensor:
    """The table where an entry can be read in one piece; a view may begin anywhere."""
    table = table.detach().contiguous()
    piece = min(16, config.n_features * table.element_size())
    return table.clone() if table.data_ptr() % piece else table


class _CudaLoops:
    """The kernels bound to a grid, points, and directions at them for the tangent form."""

    def __init__(
        self,
        config: HashGridConfig,
        points: Tensor,
        directions: Tensor | None = None,
        *,
        encoded: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.encoded = encoded
        self.points = points.detach().contiguous()
        self.directions = None if directions is None else directions.detach().contiguous()

    def interpolate(self, table: Tensor) -> Tensor:
        shape = (self.config.out_dim, len(self.points))
        dtype = self.encoded or table.dtype
        out = torch.empty(shape, dtype=dtype, device=self.points.device).t()
        self._run("interpolate", self.config.n_levels, table=_aligned(table, self.config), out=out)
        return out

    def scatter(self, grad: Tensor) -> Tensor:
        size = self.config.n_parameters
        grad_table = torch.zeros(size, dtype=grad.dtype, device=self.points.device)
        self._run("scatter", self.config.n_levels, grad=grad.detach(), out=grad_table)
        return grad_table

    def point_grad(self, table: Tensor, grad: Tensor) -> Tensor:
        grad_points = torch.empty_like(self.points)
        self._run(
            "point_grad", 1, table=_aligned(table, self.config), grad=grad.detach(), out=grad_points
        )
        return grad_points

    def _run(
        self,
        name: str,
        n_rows: int,
        *,
        out: Tensor,
        table: Tensor | None = None,
        grad: Tensor | None = None,
    ) -> None:
        encoded = out if grad is None else grad
        stored = encoded if table is None else table
        wanted = source(self.config.n_features, stored.dtype, encoded.dtype)
        ready = kernels(wanted, self.points.device)
        work = _Work(
            points=self.points.data_ptr(),
            directions=0 if self.directions is None else self.directions.data_ptr(),
            table=0 if table is None else table.data_ptr(),
            grad=0 if grad is None else grad.data_ptr(),
            out=out.data_ptr(),
            n_points=len(self.points),
            grad_point_stride=0 if grad is None else grad.stride(0),
            grad_column_stride=0 if grad is None else grad.stride(1),
            out_point_stride=out.stride(0),
            out_column_stride=out.stride(1) if out.ndim == 2 else 1,
            n_levels=self.config.n_levels,
            levels=_levels(self.config),
        )
        suffix = "" if self.directions is None else "_tangent"
        ready.launch(name + suffix, len(self.points), n_rows, work)


def encode(
    points: Tensor, table: Tensor, config: HashGridConfig, stored: torch.dtype | None = None
) -> Tensor:
    """The encoding of `reference.encode`, on CUDA.

    points: [N, 3], turned into the dtype that `POINT_DTYPES` says; table: [config.n_parameters];
    stored: float16 reads a float32 table rounded to it, and passes gradients on to the table as if
    it had not been rounded. Returns [N, config.out_dim] in the table's dtype, column by column in
    memory.
    """
    points = points.to(POINT_DTYPES[table.dtype])
    return differentiable.encode(points, table, config, *_over(table, stored))


def _over(
    table: Tensor, stored: torch.dtype | None
) -> tuple[differentiable.LoopsOver, differentiable.Stored]:
    """The loops for a table, and how they are given it."""
    if stored is None or stored == table.dtype:
        return _CudaLoops, differentiable.as_it_is
    if (stored, table.dtype) != (torch.float16, torch.float32):
        raise ValueError(f"a {table.dtype} table cannot be read as {stored}, only float32 as half.")
    return partial(_CudaLoops, encoded=table.dtype), rounded.half


def point_gradient(
    points: Tensor,
    table: Tensor,
    grad: Tensor,
    config: HashGridConfig,
    stored: torch.dtype | None = None,
) -> Tensor:
    """Gradient at the points of <grad, encode(points)>: [N, 3], differentiable to table and grad.

    grad: [N, config.out_dim]. The points count as constants.
    """
    points = points.to(POINT_DTYPES[table.dtype])
    # The kernels read it as numbers of the table's dtype.
    grad = grad.to(table.dtype)
    return differentiable.point_gradient(points, table, grad, config, *_over(table, stored))
