"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sds3d.config import DeviceName, PresetName, TeacherName
from sds3d.require import require_number


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Generate random prompts of the toybox world and measure the meshes against exact renders.

    The last line of the output is the summary. Meshes that an earlier evaluation left in the
    output folder are not made again.
    """

    prompts: int = 40
    """How many prompts: half with a pair of thing and colour that the teacher never saw."""
    seed: int = 0
    """Seed of the prompts and of every run."""
    preset: PresetName = "balanced"
    """Named set of options of the runs."""
    teacher: TeacherName = "toybox"
    """The diffusion model that judges the renders."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    out: Path = Path("outputs")
    """Folder for the runs' folders, the figures (JSON) and the picture of best, median, worst."""
    baselines: bool = True
    """Measure sphere, wrong kind and exact mesh beside it, in the same way."""

    def __post_init__(self) -> None:
        require_number("--prompts", self.prompts, 1, 100_000)
        require_number("--seed", self.seed, 0, 2**31 - 1)
