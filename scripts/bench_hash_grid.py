"""Time the hash grid's CPU kernels against a matrix product and the torch reference.

    python scripts/bench_hash_grid.py [--json]

Prints the medians, in milliseconds, of repeats that take turns in one run, so that a change in the
machine's load falls on all of them. One repeat encodes 2^17 uniform points and takes the gradient
to the table; the matrix product is float32, 1024 x 1024 x 1024, on the same threads. With --json
the last line is an object with `mm_ms`, `numba_ms` and `torch_ms`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nerf.hash_grid import Backend, HashGrid, HashGridConfig

# L = 8, F = 2, T = 2^15, base 16: a grid for objects.
CONFIG = HashGridConfig(
    n_levels=8, n_features=2, log2_table_size=15, base_resolution=16, per_level_scale=1.4473
)


def forward_backward(
    backend: Backend, points: Tensor, grad: Tensor, normals: bool = False
) -> Callable[[], object]:
    """One training step's work: the encoding and the gradient to the table.

    With `normals`, the gradient of a loss on the derivative by the points is added.
    """
    grid = HashGrid(CONFIG, backend)

    def run() -> object:
        grid.table.grad = None
        if not normals:
            return grid(points).backward(grad)
        leaf = points.requires_grad_()
        encoded = grid(leaf)
        (slope,) = torch.autograd.grad(encoded, leaf, grad, create_graph=True)
        return torch.autograd.grad((encoded * grad).sum() + slope.square().sum(), [grid.table])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the hash grid on the CPU.")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument("--points", type=int, default=2**17, help="points to encode")
    parser.add_argument("--repeats", type=int, default=11, help="repeats of each, taking turns")
    parser.add_argument("--threads", type=int, help="threads, by default torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    generator = torch.Generator().manual_seed(0)
    points = torch.rand(args.points, 3, generator=generator)
    grad = torch.randn(args.points, CONFIG.out_dim, generator=generator)
    left, right = torch.randn(2, 1024, 1024, generator=generator)
    grid = HashGrid(CONFIG, "numba")

    def inference() -> object:
        with torch.no_grad():
            return grid(points)

    runs: dict[str, Callable[[], object]] = {
        "mm": lambda: torch.mm(left, right),
        "numba": forward_backward("numba", points, grad),
        "torch": forward_backward("torch", points, grad),
        "numba, forward only": inference,
        "numba, with a loss on normals": forward_backward("numba", points.clone(), grad, True),
    }
    first_ms: dict[str, float] = {}
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            elapsed_ms = (time.perf_counter() - start) * 1e3
            if repeat == 0:  # compiles, or loads from the compiler's cache
                first_ms[name] = elapsed_ms
            else:
                times_ms[name].append(elapsed_ms)

    medians_ms = {name: statistics.median(times) for name, times in times_ms.items()}
    print(f"{args.points} points, {CONFIG}, {torch.get_num_threads()} threads")
    for name, median_ms in medians_ms.items():
        print(f"{name:32s} {median_ms:9.2f} ms   (first call {first_ms[name]:.0f} ms)")
    if args.json:
        print(
            json.dumps(
                {f"{name}_ms": round(medians_ms[name], 3) for name in ("mm", "numba", "torch")}
            )
        )


if __name__ == "__main__":
    main()
