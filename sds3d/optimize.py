"""The one loop: from a prompt to a radiance field, by the score of a frozen teacher.

Each step looks at the field from a few sides, asks the teacher what the view should rather look
like, and moves the field that way. A step is a function of the field's state, the config and the
step's number alone: all its randomness comes from (seed, step), so a resumed run repeats the
uninterrupted one bit for bit on the same machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.sds import surrogate_loss
from core.teachers.teacher import encode_for, free_text_encoders
from nerf.background import random_background
from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig
from nerf.occupancy import OccupancyConfig, OccupancyGrid
from nerf.regularizers import normal_smoothness, opacity_entropy, orientation_loss
from nerf.rendering import RenderConfig, Rendered, render

from .agreement import is_due, is_kept, measure_agreement
from .config import GenerateConfig, OptimizeConfig
from .errors import Diverged
from .events import Event, Health, Step, Warning
from .runs import CheckpointFile
from .supervision import supervise, timestep_policy
from .views import FOVY_DEG, sample_views

SNAPSHOT_INTERVAL = 25
MOST_ROLLBACKS = 3
HEALTH_INTERVAL = 50
NEIGHBOUR_DISTANCE = 0.01
"""How far apart normals are compared, in world units."""


class Teacher(Denoiser, Protocol):
    """What the loop needs of a teacher beyond denoising."""

    image_size: int

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning: ...


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """The field as the loop left it.

    Attributes:
        field, occupancy: What renders.
        step: Steps done.
        seconds: Wall time of this call by part, as StepClock names them.
        health: What is wrong with the field in plain words, empty if nothing.
        agreement: The teacher's agreement with the object by step (`measure_agreement`).
        stopped: Whether the loop was asked to stop before its last step.
    """

    field: RadianceField
    occupancy: OccupancyGrid
    step: int
    seconds: dict[str, float]
    health: list[str]
    stopped: bool
    agreement: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclass
class StepClock:
    """Wall time by part; on CUDA only sums are exact, unless `now` waits for the device.

    The parts of a step: render (rays to images, the occupancy grid's updates among it), teacher,
    backward (with the regularisers), update (the optimiser), and rest; agreement is measured
    between steps.
    """

    now: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since = self.now()

    def lap(self, part: str) -> None:
        """Count the time since the last lap for `part`."""
        now = self.now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


def optimize(
    config: GenerateConfig,
    teacher: Teacher,
    *,
    checkpoint: CheckpointFile | None,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    observe: Callable[[Optimization], None] | None = None,
) -> Optimized:
    """Optimise a field for `config.prompt`, going on from `checkpoint` where it holds a state.

    `should_stop` is asked after every step; when it says yes the state is saved and `stopped` set.
    `observe` is shown the state after every step, to look at and not to change.
    A step whose result is not finite is undone, and the learning rate halved; after three of these
    Diverged is raised. Raises the errors of `sds3d.errors`.
    """
    options = config.optimize
    loop = Optimization(config, teacher)
    if loop.supervision.view_prompts is not None and loop.supervision.view_prompts.are_one:
        on_event(
            Warning("the teacher reads all view prompts alike: --view-prompts changes nothing here")
        )
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        loop.load(*state)
    snapshot = loop.tensors(), loop.meta()
    clock, began, saved = StepClock(), loop.step, time.monotonic()
    started, stopped = time.monotonic(), False
    last_agreement: dict[int, float] = {}
    while loop.step < options.total_steps and not stopped:
        if loop.step % SNAPSHOT_INTERVAL == 0:
            snapshot = loop.tensors(), loop.meta()
        step_started = time.perf_counter()
        report = loop.advance(clock)
        if not report.finite:
            loop.roll_back(*snapshot)
            if loop.rollbacks > MOST_ROLLBACKS:
                raise Diverged(
                    f"the optimisation diverged {loop.rollbacks} times near step {loop.step}: "
                    "lower --encoding-learning-rate or --guidance-scale"
                )
            on_event(
                Warning(
                    f"a value was not finite: back to step {loop.step} with "
                    f"{loop.rate_scale:g} of the learning rate"
                )
            )
            continue
        step_seconds, agreement = time.perf_counter() - step_started, None
        if is_due(loop.step, options):
            agreement = measure_agreement(loop)
            clock.lap("agreement")
        if agreement is not None:
            last_agreement = {loop.step: agreement}
            if is_kept(loop.step, options):
                loop.agreement |= last_agreement
        elapsed = time.monotonic() - started
        on_event(
            Step(
                step=loop.step,
                steps=options.total_steps,
                timestep=report.timestep,
                opacity=report.opacity,
                step_seconds=step_seconds,
                eta_seconds=elapsed / (loop.step - began) * (options.total_steps - loop.step)
                if loop.step > began
                else 0.0,
                agreement=agreement,
                samples=report.samples,
                resolution=report.resolution,
            )
        )
        if loop.step % HEALTH_INTERVAL == 0 or loop.step == options.total_steps:
            if report.complaint is not None and report.complaint != loop.complaint:
                on_event(Health(report.complaint))
            loop.complaint = report.complaint
        if observe is not None:
            observe(loop)
        stopped = should_stop() and loop.step < options.total_steps
        due = time.monotonic() - saved > config.checkpoint_seconds
        if checkpoint is not None and (due or stopped or loop.step == options.total_steps):
            checkpoint.save(loop.tensors(), loop.meta())
            saved = time.monotonic()
    return Optimized(
        field=loop.field,
        occupancy=loop.occupancy,
        step=loop.step,
        seconds=clock.seconds,
        health=[] if loop.complaint is None else [loop.complaint],
        agreement=loop.agreement | last_agreement,
        stopped=stopped,
    )


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step saw."""

    finite: bool
    timestep: float
    opacity: float
    rays: int
    samples: int
    resolution: int
    complaint: str | None


class Optimization:
    """The state of a run and its one step."""

    def __init__(self, config: GenerateConfig, teacher: Teacher) -> None:
        self.options = config.optimize
        self.seed = config.seed
        self.teacher = teacher
        self.teacher_size = teacher.image_size
        self.device = torch.device(config.device)
        self.supervision = supervise(self.options, teacher, config.prompt, config.negative_prompt)
        self.cond = self.supervision.cond
        # What a run asks is encoded by now.
        free_text_encoders(teacher)
        self.field = make_field(self.options, config.seed).to(self.device)
        self.occupancy = OccupancyGrid(
            self.field.aabb,
            OccupancyConfig(
                resolution=self.options.occupancy_resolution,
                update_every=self.options.occupancy_interval,
            ),
        ).to(self.device)
        encoding = list(self.field.encoding.parameters())
        rest = [*self.field.hidden.parameters(), *self.field.head.parameters()]
        self.optimizer = torch.optim.Adam(
            [{"params": encoding}, {"params": rest}], betas=(0.9, 0.99), eps=1e-15, fused=True
        )
        self.step = 0
        self.rollbacks = 0
        self.rate_scale = 1.0
        self.complaint: str | None = None
        self.agreement: dict[int, float] = {}

    def advance(self, clock: StepClock) -> StepReport:
        """One step: look, ask, move."""
        options = self.options
        progress = min(self.step / options.steps, 1.0)
        generator = torch.Generator().manual_seed(step_seed(self.seed, self.step))
        self._set_rates(progress)
        clock.lap("rest")
        self.occupancy.update(self.step, self.field.density, generator)
        clock.lap("render")

        views = sample_views(options.views_per_step, options.elevation_range_deg, generator)
        resolution = resolution_at(options, progress)
        c2w = orbit_c2w(views.azimuth_deg, views.elevation_deg, views.distance, device=self.device)
        rays_o, rays_d = camera_rays(c2w, FOVY_DEG, resolution, resolution)
        background = random_background(len(c2w), generator).to(self.device)
        needs_normals = options.orientation_weight > 0
        clock.lap("rest")
        rendered = render(
            self.field,
            self.occupancy,
            rays_o,
            rays_d,
            RenderConfig(step_size=options.step_size),
            background=background[:, None, None],
            generator=generator,
            with_normals=needs_normals,
            create_graph=needs_normals,
        )
        images = F.interpolate(
            rendered.images, (self.teacher_size, self.teacher_size), mode="bilinear"
        )
        x = 2.0 * images - 1.0
        clock.lap("render")

        t = sample_timesteps(options, progress, len(x), generator).to(self.device)
        judged = encode_for(self.teacher, x)
        gradient = self.supervision.gradient(judged.detach(), t, views, generator)
        clock.lap("teacher")

        loss = surrogate_loss(judged, gradient) / judged[0].numel() / len(judged)
        loss = loss + regularization(options, self.field, rendered, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clock.lap("backward")
        finite = bool(torch.isfinite(loss)) and self._gradients_finite()
        if finite:
            self.optimizer.step()
            self.step += 1
        clock.lap("update")
        opacity = rendered.opacity.detach()
        report = StepReport(
            finite=finite,
            timestep=float(t.mean()),
            opacity=float(opacity.mean()),
            rays=opacity.numel(),
            samples=len(rendered.surface.samples),
            resolution=resolution,
            complaint=complaint_about(opacity),
        )
        clock.lap("rest")
        return report

    def tensors(self) -> dict[str, Tensor]:
        """A copy of every tensor that determines the following steps."""
        found = {f"field.{k}": v for k, v in self.field.state_dict().items()}
        found |= {f"occupancy.{k}": v for k, v in self.occupancy.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def meta(self) -> dict[str, Any]:
        """The plain numbers beside the tensors."""
        return {
            "step": self.step,
            "rollbacks": self.rollbacks,
            "rate_scale": self.rate_scale,
            "complaint": self.complaint,
            "agreement": list(self.agreement.items()),
        }

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take the state that `tensors` and `meta` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

        self.field.load_state_dict(part("field"))
        self.occupancy.load_state_dict(part("occupancy"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("adam").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = int(meta["step"])
        self.rollbacks = int(meta["rollbacks"])
        self.rate_scale = float(meta["rate_scale"])
        self.complaint = meta.get("complaint")
        self.agreement = {int(step): float(value) for step, value in meta.get("agreement", [])}

    def roll_back(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Undo what happened since the snapshot and go on at half the rate."""
        rollbacks, scale = self.rollbacks, self.rate_scale
        self.load(tensors, meta)
        self.rollbacks, self.rate_scale = rollbacks + 1, scale / 2

    def _set_rates(self, progress: float) -> None:
        decay = self.options.final_learning_rate**progress * self.rate_scale
        rates = (self.options.encoding_learning_rate, self.options.mlp_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * decay

    def _gradients_finite(self) -> bool:
        squares = [p.grad.square().sum() for p in self.field.parameters() if p.grad is not None]
        return bool(torch.isfinite(torch.stack(squares)).all())


def make_field(options: OptimizeConfig, seed: int) -> RadianceField:
    """The field before its first step."""
    grid = HashGridConfig(
        n_levels=options.field.n_levels,
        n_features=options.field.n_features,
        log2_table_size=options.field.log2_table_size,
        base_resolution=options.field.base_resolution,
        per_level_scale=options.field.per_level_scale,
    )
    return RadianceField(
        FieldConfig(hash_grid=grid, hidden_dim=options.field.hidden_dim),
        generator=torch.Generator().manual_seed(step_seed(seed, -1)),
    )


def step_seed(seed: int, step: int) -> int:
    """A generator seed of its own for every (seed, step): splitmix64's finaliser."""
    z = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1342543DE82EF95) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**63


def resolution_at(options: OptimizeConfig, progress: float) -> int:
    """Side of the rendered views at this progress."""
    reached = sum(progress >= milestone for milestone in options.resolution_milestones)
    return options.resolutions[reached]


def sample_timesteps(
    options: OptimizeConfig, progress: float, count: int, generator: torch.Generator
) -> Tensor:
    """Diffusion times [count], as the options' policy chooses them at this progress."""
    return timestep_policy(options).sample(progress, count, generator)


def regularization(
    options: OptimizeConfig,
    field: RadianceField,
    rendered: Rendered,
    generator: torch.Generator,
) -> Tensor:
    """The weighted sum of the regularisers in use."""
    surface = rendered.surface
    total = options.entropy_weight * opacity_entropy(rendered.opacity)
    if options.orientation_weight > 0 and surface.normals is not None:
        total = total + options.orientation_weight * orientation_loss(
            surface.weights, surface.normals, surface.directions, rendered.opacity.numel()
        )
    if options.normal_smoothness_weight > 0:
        total = total + options.normal_smoothness_weight * normal_smoothness(
            lambda points: field.normals(points, create_graph=True),
            surface.positions,
            surface.weights,
            distance=NEIGHBOUR_DISTANCE,
            generator=generator,
        )
    return total


def complaint_about(opacity: Tensor) -> str | None:
    """What is wrong with the views' opacity in plain words, None if nothing is.

    The marks: nothing covers 1 % of the views; a third of what is covered is half transparent;
    nine tenths of every view are covered.
    """
    covered = float((opacity > 0.05).float().mean())
    if covered < 0.01:
        return "empty: nothing is left in the box; try another --seed or a lower guidance scale"
    half = float(((opacity > 0.15) & (opacity < 0.85)).float().mean())
    if half > covered / 3:
        return "fog: most of the object is half transparent; more --steps usually clear it"
    if covered > 0.9:
        return "fills the box: the object is cut off at its sides; try another --seed"
    return None
