"""What result.json says of a run: the options, what they took, and on what machine."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .config import GenerateConfig
from .config_json import ALGORITHM_VERSION, to_dict
from .runs import RunFolder

if TYPE_CHECKING:
    from .optimize import Optimized
    from .refine import SecondStage


def report_of_refining(report: dict[str, Any], refined: SecondStage) -> dict[str, Any]:
    """What the second stage adds to the first one's report, and what it puts in its place."""
    optimized = refined.optimized
    return {
        "steps": report["steps"] + optimized.step,
        "health": list(optimized.health),
        "peak_memory_bytes": peak_memory_bytes(),
        "refine": {
            "teacher": refined.teacher,
            "steps": optimized.step,
            "seconds": dict(optimized.seconds),
            "agreement": [[step, value] for step, value in sorted(optimized.agreement.items())],
        },
    }


def report_of(
    run: RunFolder, config: GenerateConfig, optimized: Optimized, held: dict[str, Any]
) -> dict[str, Any]:
    """The part of result.json that the pipeline itself knows; `held` is how the teacher was."""
    import torch

    return {
        "version": version("sds3d"),
        "algorithm": ALGORITHM_VERSION,
        "key": run.key,
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": config.seed,
        "preset": config.preset,
        "teacher": {"name": config.teacher, "weights_sha256": run.weights_sha256, **held},
        "config": to_dict(config),
        "steps": optimized.step,
        "optimize_seconds": dict(optimized.seconds),
        "health": list(optimized.health),
        "agreement": [[step, value] for step, value in sorted(optimized.agreement.items())],
        "peak_memory_bytes": peak_memory_bytes(),
        "machine": {
            "device": config.device,
            "device_name": torch.cuda.get_device_name()
            if config.device == "cuda"
            else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def peak_memory_bytes() -> dict[str, int]:
    """Most memory that this process has held: of the machine, and of the CUDA device if used."""
    import torch

    peak: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak
