"""Runs in a tenth of a second: the program's own loop on a tiny field, with a teacher of one grey.

Only the teacher and the export are made up. What is saved, locked, resumed and published is the
program's, and the export's bytes are those of the field, so that equal files mean equal fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from sds3d import cli
from sds3d.config import GenerateConfig
from sds3d.events import Listener, Stage
from sds3d.generate import Parts
from sds3d.optimize import optimize
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.runs import RunFolder

STEPS = 5
PROMPT = "a red mushroom"
WEIGHTS = "a" * 64
GREY = 0.3

TINY = OptimizeConfig(
    steps=STEPS,
    guidance_scale=1.0,
    resolutions=(8,),
    resolution_milestones=(),
    step_size=0.2,
    occupancy_resolution=8,
    field=FieldOptions(
        n_levels=2, log2_table_size=10, base_resolution=4, finest_resolution=12, hidden_dim=8
    ),
)


@dataclass(frozen=True, kw_only=True)
class Understood:
    """How the grey teacher reads any prompt."""

    warning: str | None = None


@dataclass
class GreyTeacher:
    """Whatever it is shown, it would rather see an even grey."""

    weights_sha256: str = WEIGHTS
    image_size: int = 8
    schedule: FlowSchedule = field(default_factory=FlowSchedule)

    def check_prompt(self, prompt: str) -> Understood:
        del prompt
        return Understood()

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        del prompts, negative_prompt
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        del cond
        return Prediction.from_x0(torch.full_like(x_t, GREY), x_t, t, self.schedule)


def tiny_optimize(config: GenerateConfig, teacher: Any, **how: Any) -> Any:
    """The program's loop on a tiny field, whatever the options say, with a save after each step."""
    options = dataclasses.replace(TINY, steps=config.optimize.steps)
    tiny = dataclasses.replace(config, optimize=options, checkpoint_seconds=1e-6)
    return optimize(tiny, teacher, **how)


def write_field(
    optimized: Any, config: GenerateConfig, folder: Path, on_event: Listener
) -> dict[str, Any]:
    """One file per format, of the field's own bytes."""
    on_event(Stage("mesh"))
    values = optimized.particles[0].state_dict()
    content = b"".join(values[name].numpy().tobytes() for name in sorted(values))
    on_event(Stage("export"))
    for name in config.mesh.formats:
        (folder / f"mesh.{name}").write_bytes(content)
    (folder / "preview.png").write_bytes(hashlib.sha256(content).digest())
    return {
        "mesh": {"faces": len(content)},
        "iso_iou": 1.0,
        "seconds": {"mesh": 0.0, "export": 0.0},
    }


def make_parts(
    *,
    teacher: GreyTeacher | None = None,
    optimize: Any = tiny_optimize,
    write_files: Any = write_field,
) -> Parts:
    """The parts of the pipeline; what is given takes the place of what is above."""
    return Parts(
        load_teacher=lambda _name, _device: teacher or GreyTeacher(),
        optimize=optimize,
        write_files=write_files,
    )


def make_config(out: Path, **fields: Any) -> GenerateConfig:
    """The options of a run of a few steps."""
    values = {"prompt": PROMPT, "device": "cpu", "optimize": TINY, **fields}
    return GenerateConfig(out=out, **values)


def words_of(out: Path) -> list[str]:
    """The same run as a command's words."""
    options = ["--steps", str(STEPS), "--device", "cpu", "--out", str(out), "--json"]
    return ["generate", PROMPT, *options]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command came to: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def is_crash(self) -> bool:
        """Whether it ended with anything but a sentence of the program's own."""
        return "Traceback" in self.err or "internal error" in self.err


def command(words: Sequence[str], *, parts: Parts | None = None) -> Said:
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words, parts=parts)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return Said(code=code, out=out.getvalue(), err=err.getvalue())


def run_folder(out: Path) -> Path | None:
    """The only run's folder below `out`; None where it was not made yet."""
    found = [path for path in out.iterdir() if path.is_dir()] if out.is_dir() else []
    if len(found) > 1:
        raise RuntimeError(f"one request made {len(found)} folders: {found}")
    return found[0] if found else None


def hashes(folder: Path) -> dict[str, str]:
    """What a finished run's files are; empty where it is not finished or one is not whole."""
    run = RunFolder.open(folder)
    result = run.result()
    if result is None or run.verify():
        return {}
    return {name: digest for name, digest in result["files"].items() if name != "config.json"}
