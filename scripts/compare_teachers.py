"""Does a teacher with guidance built in pay its way? Its pace, and what it costs in the meshes.

    python scripts/compare_teachers.py
    python scripts/compare_teachers.py --before-reports outputs/two --after-reports outputs/one

Times what a step asks of either teacher, taking turns in one process, so that a change in the
machine's load falls on both. With the folders (or JSON reports) of `sds3d evaluate` runs over the
same prompts and seeds it prints the paired differences of R-Precision, azimuth accuracy and
silhouette IoU with 95 % intervals, by a bootstrap over prompts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from sds3d.config import DeviceName, GenerateConfig
from sds3d.device import resolve_device
from sds3d.embedded_guidance import check_supervision
from sds3d.errors import BadInput, Sds3dError
from sds3d.evaluate.compare import FIGURES, paired_difference, read_reports
from sds3d.optimize import sample_timesteps
from sds3d.require import require_number
from sds3d.supervision import Supervision, supervise
from sds3d.teachers import load_teacher
from sds3d.views import sample_views

GOALS = {"r_precision": -0.03, "azimuth_accuracy": -0.03, "silhouette_iou": -0.02}
"""The loss of each figure that the interval must exclude."""

MOST_TIME = 0.55
"""Of the two-pass teacher's seconds per step."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two teachers in time and, given evaluations, in what they make."""

    before: str = "toybox"
    """The teacher that takes two passes."""
    after: str = "toybox-guided"
    """The teacher that takes one."""
    repeats: int = 60
    """Steps of each that are timed; 0 leaves the timing out."""
    before_reports: tuple[Path, ...] = ()
    """Folders or JSON reports of the first teacher's evaluations."""
    after_reports: tuple[Path, ...] = ()
    """The second teacher's, over the same prompts and seeds."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    json: bool = False
    """Print JSON only."""

    def __post_init__(self) -> None:
        require_number("--repeats", self.repeats, 0, 100_000)
        if bool(self.before_reports) != bool(self.after_reports):
            raise BadInput("--before-reports and --after-reports go together: give both or neither")


def seconds_per_step(config: CompareConfig) -> dict[str, Any]:
    """Median seconds of what a run's step asks of each teacher, and their ratio."""
    device = resolve_device(config.device)
    options = GenerateConfig(prompt="a red mushroom", device=device).optimize
    asked: dict[str, Supervision] = {}
    sides: dict[str, int] = {}
    for name in (config.before, config.after):
        teacher = load_teacher(name, device)
        check_supervision(teacher, name, options, "")
        asked[name] = supervise(options, teacher, "a red mushroom", "")
        sides[name] = teacher.image_size
    times: dict[str, list[float]] = {name: [] for name in asked}
    for i in range(-3, config.repeats):
        for name, supervision in asked.items():
            generator = torch.Generator().manual_seed(max(i, 0))
            views = sample_views(options.views_per_step, options.elevation_range_deg, generator)
            count, side = options.views_per_step, sides[name]
            x = torch.rand(count, 3, side, side, generator=generator).to(device)
            t = sample_timesteps(options, 0.5, count, generator).to(device)
            _wait(device)
            began = time.perf_counter()
            supervision.gradient(2 * x - 1, t, views, generator)
            _wait(device)
            # The first few bring memory and kernels up.
            if i >= 0:
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    before, after = medians[config.before], medians[config.after]
    return {
        "before_seconds": round(before, 6),
        "after_seconds": round(after, 6),
        "ratio": round(after / before, 4),
        "goal": MOST_TIME,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def differences(config: CompareConfig) -> dict[str, Any]:
    """The paired difference of each figure, and whether its interval excludes the loss to avoid."""
    before, after = read_reports(config.before_reports), read_reports(config.after_reports)
    found = {}
    for figure, field in FIGURES.items():
        difference = paired_difference(before, after, field)
        excluded = difference.low > GOALS[figure]
        found[figure] = {**asdict(difference), "goal": GOALS[figure], "excluded": excluded}
    return found


def table(found: dict[str, Any]) -> str:
    lines = []
    if "step" in found:
        step = found["step"]
        lines.append(
            f"teacher: {1e3 * step['before_seconds']:.1f} ms a step in two passes, "
            f"{1e3 * step['after_seconds']:.1f} ms in one: {step['ratio']:.2f} of it "
            f"(at most {step['goal']} wanted; {step['device']}, {step['threads']} threads)"
        )
    for figure, value in found.get("differences", {}).items():
        verdict = "is excluded" if value["excluded"] else "is NOT excluded"
        lines.append(
            f"{figure:17} {value['before']:.3f} -> {value['after']:.3f}: "
            f"{value['difference']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}] over "
            f"{value['pairs']} pairs of {value['prompts']} prompts; a loss of "
            f"{-value['goal']:g} {verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        config = tyro.cli(CompareConfig, config=(tyro.conf.FlagCreatePairsOff,))
        found: dict[str, Any] = {}
        if config.repeats:
            found["step"] = seconds_per_step(config)
        if config.before_reports:
            found["differences"] = differences(config)
    except Sds3dError as error:
        print(f"compare_teachers: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found) if config.json else table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
