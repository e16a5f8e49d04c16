"""Time many prompts: a command for each, a batch of one and of more workers, a batch on Ray.

    python scripts/bench_batch.py [--items N] [--steps N] [--workers 1 2] [--ray local] [--json]

Every item is the same prompt with a seed of its own. "cold" starts `sds3d generate` for each item
anew; the batches load the teacher once for each worker, and the processors are divided among the
workers. An item is warm where its worker had made one before; of the items of a batch with W
workers the first W to be finished are taken for those that were not. Prints for each way the
seconds of a whole command, the items per hour with the start of the program and without it, and
the median seconds of a warm item; and what part of the time of its optimisation an item spent on
pictures of the growing object, the largest of all items. With --json the last line is an object
with `processors`, `items`, `steps`, `preset`, `cold_seconds` and `batches`, a list of objects with
`way`, `workers`, `command_seconds`, `items_per_hour`, `warm_seconds`, `warm_items_per_hour`,
`pictures` (of all items) and `picture_share`.
"""

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sds3d.jobs.journal import JOURNAL


def main() -> None:
    parser = argparse.ArgumentParser(description="Time many prompts in several ways.")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument("--items", type=int, default=4, help="items of a batch")
    parser.add_argument("--cold", type=int, default=2, help="commands of one item each")
    parser.add_argument("--steps", type=int, default=100, help="steps of an item")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--prompt", default="a red mushroom")
    parser.add_argument("--teacher", default="toybox", help="toybox, or a teacher's folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the batches")
    parser.add_argument("--ray", default="local", help="address of the Ray cluster")
    default = shlex.join([sys.executable, "-m", "sds3d.cli"])
    parser.add_argument("--sds3d", default=default, help="how the program is called")
    args = parser.parse_args()
    if args.items <= max(args.workers):
        parser.error("--items must be more than the workers, or no item is warm")

    with tempfile.TemporaryDirectory(prefix="sds3d-bench-") as folder:
        cold_seconds = statistics.median(
            _cold(args, Path(folder) / f"cold-{n}", n) for n in range(args.cold)
        )
        ways: list[tuple[str, int]] = [("processes", workers) for workers in args.workers]
        if importlib.util.find_spec("ray") is None:
            print("ray is not installed: the batch on Ray is left out", file=sys.stderr)
        else:
            ways.append(("ray", max(args.workers)))
        batches = [
            _batch(args, Path(folder) / f"batch-{n}", way, workers)
            for n, (way, workers) in enumerate(ways)
        ]

    print(
        f"{args.prompt!r}, {args.preset}, {args.steps} steps, {args.items} items, "
        f"{os.cpu_count()} processors"
    )
    print("way              command s   items/h   warm item s   items/h warm   pictures")
    print(f"{'generate, cold':16s} {cold_seconds:9.1f} {3600 / cold_seconds:9.0f}")
    for made in batches:
        name = f"{made['way']}, {made['workers']}"
        print(
            f"{name:16s} {made['command_seconds']:9.1f} {made['items_per_hour']:9.0f} "
            f"{made['warm_seconds']:13.1f} {made['warm_items_per_hour']:14.0f} "
            f"{made['pictures']:4d}, {made['picture_share']:.1%}"
        )
    if args.json:
        facts = {"processors": os.cpu_count(), "items": args.items, "steps": args.steps}
        facts |= {"preset": args.preset, "cold_seconds": round(cold_seconds, 2)}
        print(json.dumps(facts | {"batches": batches}))


def _options(args: argparse.Namespace, out: Path) -> list[str]:
    words = ["--out", str(out), "--steps", str(args.steps), "--preset", args.preset]
    return [*words, "--teacher", args.teacher, "--device", args.device, "--json"]


def _cold(args: argparse.Namespace, out: Path, seed: int) -> float:
    """The seconds of a command that makes one item."""
    words = ["generate", args.prompt, "--seed", str(seed), *_options(args, out)]
    return _seconds(args, words)[0]


def _batch(args: argparse.Namespace, out: Path, way: str, workers: int) -> dict[str, Any]:
    """What one batch took."""
    out.mkdir()
    prompts = out / "list.jsonl"
    items = [{"prompt": args.prompt, "seed": seed} for seed in range(args.items)]
    prompts.write_text("\n".join(map(json.dumps, items)))
    words = ["batch", str(prompts), "--workers", str(workers), *_options(args, out)]
    words += ["--ray", args.ray] if way == "ray" else []
    seconds, events = _seconds(args, words)
    made = [event for event in events if event["event"] == "item"]
    if any(item["outcome"] != "ok" for item in made) or len(made) != args.items:
        raise SystemExit(f"{way}, {workers} workers: not all items were made: {made}")
    pictures = [_pictures(Path(item["folder"])) for item in made]
    warm_seconds = statistics.median(item["seconds"] for item in made[workers:])
    return {
        "way": way,
        "workers": workers,
        "command_seconds": round(seconds, 2),
        "items_per_hour": round(3600 * args.items / seconds, 1),
        "warm_seconds": round(warm_seconds, 2),
        "warm_items_per_hour": round(3600 * workers / warm_seconds, 1),
        "pictures": sum(count for count, _ in pictures),
        "picture_share": round(max(share for _, share in pictures), 4),
    }


def _pictures(folder: Path) -> tuple[int, float]:
    """How many pictures of its growing object a run took, and their part of its optimisation."""
    lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    seconds = [e["seconds"] for e in map(json.loads, lines) if e["event"] == "preview"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return len(seconds), sum(seconds) / result["seconds"]["optimize"]


def _seconds(args: argparse.Namespace, words: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Wall time and events of one call of the program."""
    began = time.perf_counter()
    done = subprocess.run(
        [*shlex.split(args.sds3d), *words], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"sds3d {shlex.join(words)} failed:\n{done.stderr[-2000:]}")
    return seconds, [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
