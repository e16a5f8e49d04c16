"""Time the CUDA kernels on a GPU: the encoding, the MLP behind it, rendering, steps, and a run.

    python scripts/bench_cuda.py [--json] [--only PART ...] [--repeats N]
    python scripts/bench_cuda.py --smoke [--device cpu]     # runs through it all; no figure counts

Parts: encoding, mlp, render, toybox, unet, 512, run. The encoding has L = 16, F = 2, T = 2^19 and a
growth of 1.4473, and takes 2^16, 2^18 and 2^20 points, uniform in the cube or in order along rays;
forward, and forward with the gradient to the table; by our kernels with a float32 table, one read
as float16 and one that is float16 throughout, by the torch reference, and by tinycudann where it
is importable, in float32 and in its native float16. `mlp` is the encoding and two linear layers, 64
wide, forward and backward. `render` is a view of 128 x 128 rays forward and backward. `toybox` is a
step of the `fast` preset with the embedded teacher, plainly and by CUDA graphs. `unet` is a step
with UNets of Stable Diffusion 2.1's and SDXL's size, float16 and of random weights, on a field of
latents (no autoencoder), beside that UNet alone: "x teacher" is the ratio that is to be at most
1.15. `512` are pictures of 512 pixels through Stable Diffusion's autoencoder, with the field alone,
the teacher alone and both. `run` is a `fast` run from command to files.

Everything but `run` is warm, timed by CUDA events, and the median of the repeats. "traffic" is what
the algorithm must read and write at least once for each point, in GB/s and as a share of what a
copy reaches on the same card; more than 1 means that caches answer. "error" is the largest
difference from the reference in float64, as a share of the largest value. "GiB" is the peak of
what torch held on the device. What does not fit is a row without a figure, and a part that fails
does not take the others with it: the exit status is then 1. With --json the last line is an object
with all rows. Without a CUDA device, and without --device cpu, it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from cuda_bench.fields import bench_encoding, bench_mlp, bench_render
from cuda_bench.measure import Row, Setting, copy_gb_s, smoke
from cuda_bench.steps import bench_512, bench_run, bench_toybox, bench_unet
from nerf.hash_grid import choose_backend

PARTS = ("encoding", "mlp", "render", "toybox", "unet", "512", "run")
Part = Literal["encoding", "mlp", "render", "toybox", "unet", "512", "run"]

BENCHES: dict[Part, Callable[[Setting], Iterator[Row]]] = {
    "encoding": bench_encoding,
    "mlp": bench_mlp,
    "render": bench_render,
    "toybox": bench_toybox,
    "unet": bench_unet,
    "512": bench_512,
    "run": bench_run,
}


def line_of(row: Row, copy: float) -> str:
    """A row of the table."""
    text = f"{row.part:9s}{row.what:50s}{row.points:9d} {row.order:8s}"
    if row.ms is None:
        return f"{text}{row.failed}"
    text += f"{row.ms:10.3f} ms"
    if row.traffic_gb_s is not None:
        text += f"{row.traffic_gb_s:9.0f} GB/s ({row.traffic_gb_s / copy:.2f})"
    if row.error is not None:
        text += f"   error {row.error:.1e}"
    if row.over_teacher is not None:
        text += f"   {row.over_teacher:.2f} x teacher"
    if row.peak_gib is not None:
        text += f"   {row.peak_gib:.2f} GiB"
    if row.nerf_memory is not None:
        text += f" ({row.nerf_memory:.0%} beyond the teacher's)"
    return text


def measure(parts: list[Part], setting: Setting, copy: float) -> tuple[list[Row], dict[str, str]]:
    """The rows of all parts as they come, and the parts that failed, with a reason each."""
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for part in parts:
        try:
            for row in BENCHES[part](setting):
                print(line_of(row, copy), flush=True)
                rows.append(row)
        except Exception as error:  # the other parts' figures are worth as much
            reason = (str(error).strip() or "no words").split("\n", 1)[0]
            failed[part] = f"{type(error).__name__}: {reason}"
            print(f"{part} failed: {failed[part]}", file=sys.stderr)
    return rows, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the CUDA kernels on a GPU.")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to time")
    parser.add_argument("--repeats", type=int, default=30, help="repeats of each")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device: there is nothing to time here", file=sys.stderr)
        return 2
    if args.device == "cpu" and not args.smoke:
        print("--device cpu is for --smoke: this times a GPU", file=sys.stderr)
        return 2
    try:
        _, reason = choose_backend("cuda" if args.device == "cuda" else "auto", device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device=device, repeats=args.repeats, out=Path(folder))
        setting = smoke(setting) if args.smoke else setting
        card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        copy = copy_gb_s(setting)
        print(f"{card}, torch {torch.__version__}; {reason}; a copy moves {copy:.0f} GB/s")
        rows, failed = measure(list(args.only), setting, copy)
    if args.json:
        print(json.dumps(document_of(card, copy, rows, failed, smoke=args.smoke)))
    return 1 if failed else 0


def document_of(
    card: str, copy: float, rows: list[Row], failed: dict[str, str], *, smoke: bool
) -> dict[str, Any]:
    """What --json prints; `smoke` says that its figures are of tiny sizes."""
    return {
        "device": card,
        "torch": torch.__version__,
        "smoke": smoke,
        "copy_gb_s": round(copy, 1),
        "rows": [asdict(row) for row in rows],
        "failed": failed,
    }


if __name__ == "__main__":
    sys.exit(main())
