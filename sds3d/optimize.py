"""The one loop: from a prompt to a radiance field or an image, by the score of a frozen teacher.

Each step looks at what is optimised from a few sides, asks the teacher what the view should rather
look like, and moves it that way. Of several particles each step takes the next one in turn. A step
is a function of the state, the config and the step's number alone: all its randomness comes from
(seed, step), so a resumed run repeats the uninterrupted one, on the same machine's CPU bit for bit.
On CUDA many threads add to one entry of the table in the order in which they come, so that the last
bits of two runs differ there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.sds import surrogate_loss
from core.teachers.teacher import LatentTeacher, free_text_encoders
from core.transfer import to_device

from .agreement import is_due, is_kept, measure_agreement
from .config import GenerateConfig
from .cuda_graphs import asked_by_graphs
from .errors import Diverged, is_out_of_memory
from .events import HEALTH_INTERVAL, SOUND, Event, Health, Step, Warning
from .latent_representation import latent_reading
from .optimize_config import OptimizeConfig
from .optimizer_state import all_finite, load_moments, moments_of
from .representation import Representation
from .resize import at_size
from .runs import CheckpointFile
from .seeds import step_seed
from .supervision import supervise, timestep_policy
from .targets import represent
from .views import in_rings

SNAPSHOT_INTERVAL = 25
MOST_ROLLBACKS = 3

_SNAPSHOT = "snapshot"
_State = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Optimization.tensors` and `Optimization.meta` give."""


class Teacher(Denoiser, Protocol):
    """What the loop needs of a teacher beyond denoising."""

    image_size: int

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning: ...


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """What the loop made, as it left it.

    Attributes:
        particles: What was optimised, more than one only where the method takes several.
        step: Steps done.
        seconds: Wall time of this call by part, as StepClock names them.
        health: What is wrong with what was made in plain words, empty if nothing.
        agreement: The teacher's agreement with the object by step (`measure_agreement`).
        stopped: Whether the loop was asked to stop before its last step.
    """

    particles: tuple[Representation, ...]
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
    particles: Sequence[Representation] | None = None,
) -> Optimized:
    """Optimise for `config.prompt`, going on from `checkpoint` where it holds a state.

    `particles` are what is optimised, where it does not begin as `sds3d.targets` has it.
    `should_stop` is asked after every step; when it says yes the state is saved and `stopped` set.
    `observe` is shown the state after every step, to look at and not to change.
    A step whose result is not finite is undone, and the learning rate halved; after three of these
    Diverged is raised. Where memory does not suffice for a step, the last whole state is saved.
    Raises the errors of `sds3d.errors`.
    """
    loop = Optimization(config, teacher, particles)
    # After the teacher has been copied, where it is: a copy that learns must not be replayed.
    with asked_by_graphs(config.optimize, teacher, on_event):
        return _run(loop, config, checkpoint, on_event, should_stop, observe)


def _run(
    loop: Optimization,
    config: GenerateConfig,
    checkpoint: CheckpointFile | None,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    observe: Callable[[Optimization], None] | None,
) -> Optimized:
    options = config.optimize
    if loop.supervision.warning is not None:
        on_event(Warning(loop.supervision.warning))
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        loop.load(*state)
        snapshot = _kept_snapshot(*state)
    else:
        snapshot = None
    snapshot = snapshot or (loop.tensors(), loop.meta())
    clock, began, saved, saved_step = StepClock(), loop.step, time.monotonic(), loop.step
    started, stopped = time.monotonic(), False
    last_agreement: dict[int, float] = {}
    while loop.step < options.total_steps and not stopped:
        if loop.step % SNAPSHOT_INTERVAL == 0:
            snapshot = loop.tensors(), loop.meta()
        step_started = time.perf_counter()
        try:
            report = loop.advance(clock)
        except Exception as error:
            # The state is that of half a step; the snapshot's is whole.
            later = snapshot[1]["step"] > saved_step
            if checkpoint is not None and later and is_out_of_memory(error):
                checkpoint.save(*snapshot)
            raise
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
        if loop.is_judged:
            if report.complaint != loop.complaint:
                on_event(Health(report.complaint or SOUND))
            loop.complaint = report.complaint
        if observe is not None:
            observe(loop)
        stopped = should_stop() and loop.step < options.total_steps
        due = time.monotonic() - saved > config.checkpoint_seconds
        if checkpoint is not None and (due or stopped or loop.step == options.total_steps):
            checkpoint.save(*_with_snapshot(loop, snapshot))
            saved, saved_step = time.monotonic(), loop.step
    return Optimized(
        particles=tuple(loop.particles),
        step=loop.step,
        seconds=clock.seconds,
        health=[] if loop.complaint is None else [loop.complaint],
        agreement=loop.agreement | last_agreement,
        stopped=stopped,
    )


def _with_snapshot(loop: Optimization, snapshot: _State) -> _State:
    """What a checkpoint holds: the loop's state, and that to which a broken number takes it back.

    So a run goes as far back after a resumption as without one. At a step at which a snapshot is
    taken the state is its own.
    """
    tensors, meta = loop.tensors(), loop.meta()
    if loop.step % SNAPSHOT_INTERVAL == 0:
        return tensors, meta
    before = {f"{_SNAPSHOT}.{name}": tensor for name, tensor in snapshot[0].items()}
    return tensors | before, meta | {_SNAPSHOT: snapshot[1]}


def _kept_snapshot(tensors: dict[str, Tensor], meta: dict[str, Any]) -> _State | None:
    """The snapshot that a checkpoint holds beside its state, None where there is none."""
    if _SNAPSHOT not in meta:
        return None
    start = f"{_SNAPSHOT}."
    kept = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    return kept, meta[_SNAPSHOT]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step saw; the complaint is the earlier one where the step is not judged."""

    finite: bool
    timestep: float
    opacity: float
    rays: int
    samples: int
    resolution: int
    complaint: str | None


class Optimization:
    """The state of a run and its one step."""

    def __init__(
        self,
        config: GenerateConfig,
        teacher: Teacher,
        particles: Sequence[Representation] | None = None,
    ) -> None:
        self.options = config.optimize
        self.seed = config.seed
        self.teacher = teacher
        self.teacher_size = teacher.image_size
        self.device = torch.device(config.device)
        self.supervision = supervise(
            self.options, teacher, config.prompt, config.negative_prompt, seed=config.seed
        )
        self.cond = self.supervision.cond
        # What a run asks is encoded by now.
        free_text_encoders(teacher)
        reading = latent_reading(self.options, teacher)
        self.particles: list[Representation] = (
            [
                represent(config, teacher.image_size, number, reading)
                for number in range(self.options.particles)
            ]
            if particles is None
            else list(particles)
        )
        groups = [group for particle in self.particles for group in particle.groups()]
        self._first_rates = [group.learning_rate for group in groups]
        self.optimizer = torch.optim.Adam(
            [{"params": list(group.parameters)} for group in groups],
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
        )
        self.step = 0
        self.rollbacks = 0
        self.rate_scale = 1.0
        self.complaint: str | None = None
        self.agreement: dict[int, float] = {}

    @property
    def is_judged(self) -> bool:
        """Whether what was made is judged after this many steps; it takes reading pictures back."""
        return self.step % HEALTH_INTERVAL == 0 or self.step == self.options.total_steps

    def advance(self, clock: StepClock) -> StepReport:
        """One step: look, ask, move."""
        options = self.options
        progress = min(self.step / options.steps, 1.0)
        generator = torch.Generator().manual_seed(step_seed(self.seed, self.step))
        turn, number = divmod(self.step, len(self.particles))
        particle = self.particles[number]
        self._set_rates(progress)
        clock.lap("rest")
        particle.prepare(turn, generator)
        together = self.supervision.views_per_object
        views = in_rings(particle.views(generator), together)
        shown = particle.show(views, progress, generator)
        x = resized(shown.images, self.teacher, latent=shown.latent)
        clock.lap("render")

        times = sample_timesteps(options, progress, len(x), generator, together)
        t = to_device(times, self.device)
        judged = x if shown.latent else self.supervision.judged(2.0 * x - 1.0)
        gradient = self.supervision.gradient(judged.detach(), t, views, generator)
        clock.lap("teacher")

        loss = surrogate_loss(judged, gradient) / judged[0].numel() / len(judged)
        loss = loss + shown.penalty(generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clock.lap("backward")
        # All that the host reads of a step's numbers, in one wait for the device.
        sound = all_finite(loss, particle.parameters())
        opacity = shown.opacity.mean()
        sound, opacity = torch.stack([sound.to(opacity.dtype), opacity]).tolist()
        finite = sound == 1.0
        fake = self.supervision.fake
        if fake is not None:
            cond = self.supervision.condition(views)
            finite = fake.learn(judged.detach(), cond, generator) and finite
            clock.lap("teacher")
        if finite:
            self.optimizer.step()
            if fake is not None:
                fake.step(self.rate_scale)
            self.step += 1
        clock.lap("update")
        report = StepReport(
            finite=finite,
            timestep=float(times.mean()),
            opacity=opacity,
            rays=shown.opacity.numel(),
            samples=shown.samples,
            resolution=shown.images.shape[-1],
            complaint=particle.complaint(shown) if self.is_judged else self.complaint,
        )
        clock.lap("rest")
        return report

    def tensors(self) -> dict[str, Tensor]:
        """A copy of every tensor that determines the following steps."""
        found = {}
        for start, particle in self._named_particles():
            found |= {f"{start}{k}": v for k, v in particle.state_dict().items()}
        found |= {f"adam.{name}": moment for name, moment in moments_of(self.optimizer).items()}
        if self.supervision.fake is not None:
            found |= {f"fake.{k}": v for k, v in self.supervision.fake.tensors().items()}
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

        for start, particle in self._named_particles():
            particle.load_state_dict(
                {name: tensors[f"{start}{name}"] for name in particle.state_dict()}
            )
        load_moments(self.optimizer, part("adam"))
        if self.supervision.fake is not None:
            self.supervision.fake.load(part("fake"))
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
        for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = rate * decay

    def _named_particles(self) -> Iterator[tuple[str, Representation]]:
        """Each particle with what its names in a checkpoint begin with; the first with nothing."""
        for number, particle in enumerate(self.particles):
            yield f"particle{number + 1}." if number else "", particle


def resized(images: Tensor, teacher: Teacher, *, latent: bool) -> Tensor:
    """Images or latents at the size in which the teacher takes them."""
    side = teacher.image_size
    size = (side, side)
    if latent:
        assert isinstance(teacher, LatentTeacher)
        size = teacher.latent_shape[1:]
    return at_size(images, size)


def sample_timesteps(
    options: OptimizeConfig,
    progress: float,
    count: int,
    generator: torch.Generator,
    together: int = 1,
) -> Tensor:
    """Diffusion times [count], as the options' policy chooses them at this progress.

    Each `together` consecutive views share one.
    """
    times = timestep_policy(options).sample(progress, count // together, generator)
    return times.repeat_interleave(together)
