"""Time one step of the `fast` preset at mid-run, part by part, against a matrix product.

    python scripts/bench_step.py [--teacher FOLDER] [--json]

Runs the loop for half of the preset's steps, then lets steps and a matrix product (float32,
1024 x 1024 x 1024, on the same threads) take turns, and prints the medians in milliseconds, so that
a change in the machine's load falls on all of them. The parts of a step are those of
sds3d.optimize.StepClock; "field" is rendering with its backward pass. An update of the occupancy
grid falls in one step of several and so in few of the medians: "field, mean" holds its share. With
--json the last line is an object with `mm_ms`, `teacher_ms`, `field_ms`, `optimiser_ms`, `rest_ms`,
`rays`, `samples` and `resolution`.
"""

import argparse
import json
import statistics
import time

import torch

from sds3d.optimize import Optimization, StepClock
from sds3d.presets import generate_config
from sds3d.teachers import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one step of the optimisation.")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument("--teacher", default="toybox", help="toybox, or a teacher's folder")
    parser.add_argument("--prompt", default="a red mushroom")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=24, help="steps to time")
    parser.add_argument("--threads", type=int, help="threads, by default torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    config = generate_config("fast", prompt=args.prompt, teacher=args.teacher, device=args.device)
    loop = Optimization(config, load_teacher(config.teacher, args.device))
    while loop.step < config.optimize.steps // 2:
        if not loop.advance(StepClock()).finite:
            raise SystemExit(f"step {loop.step} was not finite: nothing to time")

    left, right = torch.randn(2, 1024, 1024, device=args.device)

    def now() -> float:
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times_ms: dict[str, list[float]] = {}
    reports = []
    for _ in range(args.repeats):
        start = now()
        torch.mm(left, right)
        parts = {"mm": now() - start}
        clock = StepClock(now=now)
        reports.append(loop.advance(clock))
        parts["teacher"] = clock.seconds["teacher"]
        parts["field"] = clock.seconds["render"] + clock.seconds["backward"]
        parts["optimiser"] = clock.seconds["update"]
        parts["rest"] = clock.seconds["rest"]
        for name, seconds in parts.items():
            times_ms.setdefault(name, []).append(seconds * 1e3)

    medians_ms = {name: statistics.median(times) for name, times in times_ms.items()}
    counts = {
        name: round(statistics.median(getattr(report, name) for report in reports))
        for name in ("rays", "samples", "resolution")
    }
    print(
        f"{args.prompt!r}, steps {loop.step - args.repeats + 1} to {loop.step} of "
        f"{config.optimize.steps}, {config.optimize.views_per_step} views of "
        f"{counts['resolution']}x{counts['resolution']}, {counts['rays']} rays, "
        f"{counts['samples']} samples, {torch.get_num_threads()} threads"
    )
    for name, median_ms in medians_ms.items():
        print(f"{name:12s} {median_ms:9.2f} ms   {median_ms / medians_ms['mm']:6.2f} mm")
    print(f"{'field, mean':12s} {statistics.mean(times_ms['field']):9.2f} ms")
    if args.json:
        print(json.dumps({f"{k}_ms": round(v, 3) for k, v in medians_ms.items()} | counts))


if __name__ == "__main__":
    main()
