"""The hash grid on a CPU: Numba's loops on a few threads, as a twice differentiable function.

Threads: Numba's own threads and torch's share a process badly (numba#9387), so the loops, which
release the interpreter's lock, run on a small pool and on the calling thread. Gradients to the
table are divided by level: whoever takes a level adds into it alone and in the order of the
points. No atomics, and the same bits whatever the number of threads. The loops clear what they add
into: a parallel torch operation in between would leave OpenMP's threads spinning on our cores for
milliseconds. After one (a matrix product, say) they do; OMP_WAIT_POLICY=PASSIVE ends that, but a
diffusion network's many small operations then take 1.6 times as long, more than it saves.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.hash_grid import differentiable
from nerf.hash_grid.config import HashGridConfig
from nerf.hash_grid.numba_kernels import BLOCK, Kernels, kernels

# Below this many points times levels, waking a thread costs more than it brings.
_PARALLEL_FROM = 2**15


@cache
def _pool(n_workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_workers, thread_name_prefix="hash-grid")


# A forked child inherits the pools but none of their threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _run(jobs: list[Callable[[], None]], n_threads: int) -> None:
    """Do all jobs, each on whichever of n_threads is free, the caller among them."""
    queue = deque(jobs)

    def drain() -> None:
        while True:
            try:
                job = queue.popleft()
            except IndexError:
                return
            job()

    n_workers = min(n_threads, len(jobs)) - 1
    futures: list[Future[None]] = []
    if n_workers > 0:
        pool = _pool(n_workers)
        futures = [pool.submit(drain) for _ in range(n_workers)]
    try:
        drain()
    finally:
        # Even when interrupted: the threads write to memory that the caller would free.
        queue.clear()
        wait(futures)
    for future in futures:
        future.result()


@cache
def _level_arrays(
    config: HashGridConfig, double: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scales [L] and shapes [L, 4] of the levels, as the kernels take them."""
    dtype = np.float64 if double else np.float32
    scales = np.array([level.scale for level in config.levels], dtype=dtype)
    shapes = np.array(
        [
            (level.resolution, level.n_entries, level.offset, level.hashed)
            for level in config.levels
        ],
        dtype=np.int64,
    )
    return scales, shapes


class _Loops:
    """The kernels bound to a grid, a set of points, and directions at them for the tangent form."""

    def __init__(self, config: HashGridConfig, points: Tensor, directions: Tensor | None = None):
        self.config = config
        self.template = points
        self.points = points.detach().contiguous().numpy()
        self.directions = (
            self.points if directions is None else directions.detach().contiguous().numpy()
        )
        self.scales, self.shapes = _level_arrays(config, points.dtype == torch.float64)
        self.kernels: Kernels = kernels(config.n_features, directions is not None)
        parallel = len(self.points) * config.n_levels >= _PARALLEL_FROM
        self.n_threads = torch.get_num_threads() if parallel else 1

    def _over_points(self, loop: Callable[..., None], *arrays: np.ndarray[Any, Any]) -> None:
        n_points = len(self.points)
        # Small shares, taken as threads come free: the cores are seldom ours alone.
        stride = 2 * BLOCK if self.n_threads > 1 else max(n_points, 1)
        jobs = [
            partial(
                loop,
                self.points,
                self.directions,
                self.scales,
                self.shapes,
                *arrays,
                start,
                min(start + stride, n_points),
            )
            for start in range(0, n_points, stride)
        ]
        _run(jobs, self.n_threads)

    def interpolate(self, table: Tensor) -> Tensor:
        """[N, out_dim]: the encoding by a table, or its derivative along the directions."""
        out = self.template.new_empty(len(self.points), self.config.out_dim)
        self._over_points(
            self.kernels.interpolate, table.detach().contiguous().numpy(), out.numpy()
        )
        return out

    def scatter(self, grad: Tensor) -> Tensor:
        """[n_parameters]: the transpose of interpolate, applied to grad [N, out_dim]."""
        grad_table = self.template.new_empty(self.config.n_parameters)
        grad_array, table_array = grad.detach().contiguous().numpy(), grad_table.numpy()
        jobs = [
            partial(
                self.kernels.scatter,
                self.points,
                self.directions,
                self.scales,
                self.shapes,
                grad_array,
                table_array,
                level,
            )
            for level in range(self.config.n_levels)
        ]
        _run(jobs, self.n_threads)
        return grad_table

    def point_grad(self, table: Tensor, grad: Tensor) -> Tensor:
        """[N, 3]: gradient to the points of <grad, encoding>; or its Hessian by the directions."""
        grad_points = self.template.new_empty(len(self.points), 3)
        self._over_points(
            self.kernels.point_grad,
            table.detach().contiguous().numpy(),
            grad.detach().contiguous().numpy(),
            grad_points.numpy(),
        )
        return grad_points


def encode(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
    """The encoding of `reference.encode`, on a CPU, in float32 or float64.

    points: [N, 3]; table: [config.n_parameters] of the same dtype. Returns [N, config.out_dim].
    Where nothing asks for a gradient, nothing is kept for one.
    """
    return differentiable.encode(points, table, config, _Loops)


def point_gradient(points: Tensor, table: Tensor, grad: Tensor, config: HashGridConfig) -> Tensor:
    """Gradient at the points of <grad, encode(points)>: [N, 3], differentiable to table and grad.

    grad: [N, config.out_dim]. The points count as constants.
    """
    return differentiable.point_gradient(points, table, grad, config, _Loops)
