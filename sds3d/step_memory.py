"""What memory a step of the loop needs with a teacher, known before its weights are read.

The step is the loop's own (`Optimization.advance`), made by the teacher's outline on torch's meta
device, where tensors have shapes and no values: whatever the options ask of a teacher is in it.
What is optimised is left out: a plain picture for each view takes its place. Nothing of it has been
compared with a GPU, whose kernels need room of their own and whose allocator rounds up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.teachers.memory_trace import MemoryTrace
from core.teachers.teacher import LatentTeacher

from .config import GenerateConfig
from .optimize import Optimization, StepClock
from .optimize_config import OptimizeConfig
from .representation import ParameterGroup, Representation, Shown
from .views import Views, sample_views

if TYPE_CHECKING:
    from .events import Listener

__all__ = ["Held", "StepMemory", "step_memory"]


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the teacher's device.

    Attributes:
        weights: Of the denoiser and the autoencoder, which stay.
        peak: The most that is held at once in a step, the weights among it.
    """

    weights: int
    peak: int


_PASSES = 2
"""Of a method's loop of passes, as many are made: further ones hold what the second one holds."""


class Held(Denoiser, Protocol):
    """What is needed of a teacher here."""

    image_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def module(self) -> nn.Module: ...

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning: ...


def step_memory(teacher: Held, options: OptimizeConfig) -> StepMemory:
    """What a step takes on the device of `teacher`, be it an outline or the real one.

    Raises ConfigError where the options ask of the teacher what it cannot do.
    """
    options = dataclasses.replace(
        options,
        particles=1,
        # What a second stage asks is asked by it.
        refine=dataclasses.replace(options.refine, refine_steps=0),
        perturbations=min(options.perturbations, _PASSES),
        ode_steps=min(options.ode_steps, _PASSES),
    )
    config = GenerateConfig(prompt="a thing", device="cpu", optimize=options)
    latent = teacher.latent_shape if isinstance(teacher, LatentTeacher) else None
    blank = _Blank(options, teacher.image_size, latent, teacher.device)
    with MemoryTrace(teacher.device.type) as trace:
        trace.count(_tensors(teacher.module))
        loop = Optimization(config, teacher, [cast(Representation, blank)])
        loop.device = teacher.device
        for group in loop.optimizer.param_groups:
            group["fused"] = False  # of the one grey number; meta tensors have no such kernel
        weights = trace.live
        # The prompt is read by now, and what it took is given back.
        trace.peak = trace.live
        loop.advance(StepClock())
        peak = trace.peak
    if loop.supervision.fake is not None:
        # Adam's moments come with the first step and stay.
        learned = loop.supervision.fake.denoiser.trainable.values()
        peak += 2 * sum(parameter.nbytes for parameter in learned)
    return StepMemory(weights=weights, peak=peak)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class _Blank(nn.Module):
    """A grey picture for each view, as large as the teacher takes them, with a gradient."""

    def __init__(
        self,
        options: OptimizeConfig,
        side: int,
        latent_shape: tuple[int, int, int] | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.options = options
        self.device = device
        # A field of latents is refined as RGB, if at all, at the end: that takes the most.
        self.latent = options.latent and options.rgb_refinement == 0
        self.shape = (3, side, side)
        if self.latent:
            assert latent_shape is not None
            self.shape = latent_shape
        self.grey = nn.Parameter(torch.tensor(0.5, device=device))
        self.finest_side = side

    def groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(parameters=[self.grey], learning_rate=0.0),)

    def prepare(self, turn: int, generator: torch.Generator) -> None:
        pass

    def views(self, generator: torch.Generator) -> Views:
        return sample_views(
            self.options.views_per_step, self.options.elevation_range_deg, generator
        )

    def around(self, count: int, elevation_deg: float) -> Views:
        raise NotImplementedError("a blank is seen in steps alone")

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        count = len(views.azimuth_deg)
        images = self.grey + torch.zeros(count, *self.shape, device=self.device)
        return Shown(
            images=images,
            opacity=torch.ones(count, 1, 1, device=self.device),
            samples=0,
            penalty=lambda _: self.grey * 0,
            latent=self.latent,
        )

    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        raise NotImplementedError("a blank is seen in steps alone")

    def complaint(self, shown: Shown) -> None:
        return None

    def write_files(
        self, config: GenerateConfig, folder: Any, on_event: Listener
    ) -> dict[str, Any]:
        raise NotImplementedError("a blank leaves no files")
