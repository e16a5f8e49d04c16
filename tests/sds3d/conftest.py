"""A teacher, a loop and an export that take milliseconds, to put into the pipeline.

Also run as a script by tests that need a process of its own: the arguments are the command line's.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.errors import UnknownSubjectError
from sds3d.config import GenerateConfig
from sds3d.events import Event, Listener, Stage, Step
from sds3d.generate import Parts
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.runs import CheckpointFile


@dataclass
class FakeReading:
    """How the fake teacher reads a prompt."""

    warning: str | None


@dataclass
class FakeTeacher:
    """Knows mushrooms and nothing else."""

    weights_sha256: str = "a" * 64

    def check_prompt(self, prompt: str) -> FakeReading:
        if "mushroom" not in prompt:
            raise UnknownSubjectError(f"nothing known in {prompt[:60]!r}; nearest: mushroom")
        return FakeReading(warning="never seen 'purplish'" if "purplish" in prompt else None)


TINY_OPTIONS = OptimizeConfig(
    steps=4,
    guidance_scale=1.0,
    resolutions=(8,),
    resolution_milestones=(),
    step_size=0.2,
    occupancy_resolution=8,
    field=FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    ),
)
"""A run of the real loop in a fraction of a second."""


@dataclass
class GreyTeacher(FakeTeacher):
    """For the real loop: whatever it is shown, it would rather see an even grey."""

    grey: ClassVar[float] = 0.3
    image_size: int = 8
    schedule: FlowSchedule = field(default_factory=FlowSchedule)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(torch.full_like(x_t, self.grey), x_t, t, self.schedule)


@dataclass
class FakeLoop:
    """A random walk: bit for bit the same whether or not it was interrupted."""

    step_seconds: float = 0.0
    save_every: int = 3
    steps_done: int = field(default=0, init=False)

    def __call__(
        self,
        config: GenerateConfig,
        teacher: Any,
        *,
        checkpoint: CheckpointFile | None,
        on_event: Listener,
        should_stop: Callable[[], bool],
    ) -> Any:
        generator = torch.Generator().manual_seed(config.seed)
        position, step = torch.zeros(64), 0
        if checkpoint is not None and (state := checkpoint.load()) is not None:
            tensors, meta = state
            position, step = tensors["position"], meta["step"]
            generator.set_state(tensors["generator"])
        steps, stopped = config.optimize.total_steps, False
        while step < steps and not stopped:
            position = position + torch.randn(64, generator=generator)
            step += 1
            self.steps_done += 1
            time.sleep(self.step_seconds)
            on_event(
                Step(
                    step=step,
                    steps=steps,
                    timestep=0.5,
                    opacity=0.25,
                    step_seconds=self.step_seconds,
                    eta_seconds=self.step_seconds * (steps - step),
                )
            )
            stopped = should_stop() and step < steps
            if checkpoint is not None and (stopped or step == steps or step % self.save_every == 0):
                tensors = {"position": position, "generator": generator.get_state()}
                checkpoint.save(tensors, {"step": step})
        return SimpleNamespace(
            field=position,
            occupancy=None,
            step=step,
            seconds={"loop": 0.5},
            health=["a little fog"],
            agreement={steps: 0.5} if step == steps else {},
            stopped=stopped,
        )


def fake_write_files(
    optimized: Any, config: GenerateConfig, folder: Path, on_event: Listener
) -> dict[str, Any]:
    """One file per format, of bytes that depend on the field and on the mesh options."""
    on_event(Stage("mesh"))
    content = optimized.field.numpy().tobytes() + repr(config.mesh).encode()
    on_event(Stage("export"))
    for name in config.mesh.formats:
        (folder / f"mesh.{name}").write_bytes(content)
    (folder / "preview.png").write_bytes(hashlib.sha256(content).digest())
    return {
        "mesh": {"faces": config.mesh.max_faces},
        "iso_iou": 0.9,
        "seconds": {"mesh": 0.25, "export": 0.125},
    }


def make_parts(
    *,
    loop: FakeLoop | None = None,
    teacher: FakeTeacher | None = None,
    write_files: Any = fake_write_files,
) -> Parts:
    """The fakes as the pipeline takes them."""
    return Parts(
        load_teacher=lambda _name, _device: teacher or FakeTeacher(),
        optimize=loop or FakeLoop(),
        write_files=write_files,
    )


@pytest.fixture
def fakes() -> SimpleNamespace:
    """The names above."""
    return SimpleNamespace(
        Teacher=FakeTeacher,
        GreyTeacher=GreyTeacher,
        tiny_options=TINY_OPTIONS,
        Loop=FakeLoop,
        make_parts=make_parts,
        write_files=fake_write_files,
        script=Path(__file__),
    )


@pytest.fixture
def heard() -> list[Event]:
    """A list whose `append` is a listener."""
    return []


if __name__ == "__main__":
    from sds3d.cli import main

    loop = FakeLoop(step_seconds=float(os.environ.get("STEP_SECONDS", "0")))
    sys.exit(main(sys.argv[1:], parts=make_parts(loop=loop)))
