"""From a prompt to the files of a textured mesh: the whole pipeline, top to bottom.

`generate` makes a run's folder and fills it, `resume` goes on with a folder that was interrupted,
`export_run` makes the mesh of a finished run anew with other formats or sizes. All three take the
parts that do the work as arguments, so that tests and other programs can put in their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .atomic import make_writable_folder
from .config import DeviceName, Format, GenerateConfig, MeshConfig, TeacherName
from .config_json import to_dict
from .device import resolve_device
from .encoding import check_encoding
from .errors import Interrupted, RunError, TeacherError, TooLittleMemory, is_out_of_memory
from .events import Event, Listener, Result, Stage, Step, Warning, ignore_event
from .refine import (
    check_refine_teacher,
    check_second_stage,
    first_stage,
    numbered,
    refine,
    refine_checkpoint,
)
from .report import report_of, report_of_refining
from .runs import CheckpointFile, RunFolder
from .teachers import held_as, require_same_size

if TYPE_CHECKING:
    from .optimize import Optimized
    from .teachers import Reading

ShouldStop = Callable[[], bool]

_OF_THE_OPTIMISATION = (
    "agreement",
    "health",
    "optimize_seconds",
    "peak_memory_bytes",
    "refine",
    "teacher",
)


class Teacher(Protocol):
    """What the pipeline itself needs of a teacher; the loop and the preview need more."""

    @property
    def weights_sha256(self) -> str: ...

    def check_prompt(self, prompt: str) -> Reading: ...


class Optimize(Protocol):
    """The loop; see `sds3d.optimize.optimize`."""

    def __call__(
        self,
        config: GenerateConfig,
        teacher: Any,
        *,
        checkpoint: CheckpointFile | None,
        on_event: Listener,
        should_stop: ShouldStop,
    ) -> Optimized: ...


class WriteFiles(Protocol):
    """Mesh and export: fills `folder` and returns what it measured, "mesh" and "iso_iou" at least.

    Emits the stages "mesh" and "export" and returns their wall time under "seconds".
    """

    def __call__(
        self, optimized: Optimized, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of the pipeline that do the work."""

    load_teacher: Callable[[TeacherName, DeviceName], Teacher]
    optimize: Optimize
    write_files: WriteFiles


def standard_parts(teacher: TeacherName) -> Parts:
    """The teacher, the loop and the export of this program. Imports torch.

    Raises TeacherError before that where there is no such teacher.
    """
    from .teachers import load_teacher, teacher_folder

    teacher_folder(teacher)
    from .optimize import optimize
    from .write_files import write_files

    return Parts(load_teacher=load_teacher, optimize=optimize, write_files=write_files)


def with_loaded(parts: Parts, name: TeacherName, device: DeviceName, teacher: Teacher) -> Parts:
    """The parts with this teacher at hand; another one, of a second stage, is read as before."""

    def load_teacher(wanted: TeacherName, where: DeviceName) -> Teacher:
        return teacher if (wanted, where) == (name, device) else parts.load_teacher(wanted, where)

    return dataclasses.replace(parts, load_teacher=load_teacher)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A finished run: its folder and the content of its result.json."""

    folder: Path
    result: dict[str, Any]


def never_stop() -> bool:
    """A `should_stop` for runs that nobody interrupts."""
    return False


def ignore_folder(_: Path) -> None:
    """An `on_folder` for callers that need not know."""


def generate(
    config: GenerateConfig,
    *,
    on_event: Listener = ignore_event,
    should_stop: ShouldStop = never_stop,
    should_finish: ShouldStop = never_stop,
    overwrite: bool = False,
    on_folder: Callable[[Path], None] = ignore_folder,
    parts: Parts | None = None,
) -> Generated:
    """Make the mesh of a prompt in `config.out/<slug>-<key>/`.

    A folder that is already done is returned as it is, one with a checkpoint is continued;
    `overwrite` starts it anew. `should_stop` is asked after every step: when it says yes, a
    checkpoint is kept and Interrupted raised. `should_finish` is asked as often: when it says yes,
    no more steps are made and the field is exported as it is; the result's "steps" then tell, and
    the same call without it goes on to the last step. `on_folder` is told the run's folder before
    anything of the run is in it. Raises the errors of `sds3d.errors`.
    """
    make_writable_folder(config.out)
    parts = parts or _standard_parts(config)
    from .embedded_guidance import check_embedded

    check_refine_teacher(config)
    config = dataclasses.replace(config, device=resolve_device(config.device))
    _check_encoding(config, on_event)
    second = check_second_stage(config)
    started = time.perf_counter()
    on_event(Stage("teacher"))
    teacher = _load_teacher(parts, config, on_event)
    check_embedded(config.optimize.embedded_guidance, teacher, second)
    seconds = {"teacher": time.perf_counter() - started}
    run = RunFolder.create(config, teacher.weights_sha256, on_event)
    on_folder(run.path)
    with run.locked(), _interruptible(run):
        if not overwrite:
            _check_held(run, teacher)
        result = None if overwrite else run.result()
        if result is not None and _is_done(run, result):
            return _finished(run, result)
        run.start(overwrite=overwrite, held=held_as(teacher))
        return _complete(run, config, teacher, parts, seconds, should_stop, result, should_finish)


def resume(
    path: Path,
    *,
    device: DeviceName = "auto",
    on_event: Listener = ignore_event,
    should_stop: ShouldStop = never_stop,
    parts: Parts | None = None,
) -> Generated:
    """Go on with the run in the folder `path` with the options that it was started with.

    `device` other than "auto" moves the run to that device; its result is then no longer
    bit-identical to an uninterrupted one, as it never is on CUDA. Raises the errors of
    `sds3d.errors`.
    """
    run = RunFolder.open(path, on_event)
    make_writable_folder(path)
    check_refine_teacher(run.config)
    parts = parts or standard_parts(run.config.teacher)
    config = _on_device(run, device)
    with run.locked(), _interruptible(run):
        result = run.result()
        if result is not None and made_every_step(result, run.config) and not run.verify():
            return _finished(run, result)
        check_second_stage(config)
        started = time.perf_counter()
        run.emit(Stage("teacher"))
        teacher = _load_same_teacher(parts, run, config)
        seconds = {"teacher": time.perf_counter() - started}
        return _complete(run, config, teacher, parts, seconds, should_stop, result)


def export_run(
    path: Path,
    *,
    formats: tuple[Format, ...] | None = None,
    max_faces: int | None = None,
    texture_size: int | None = None,
    device: DeviceName = "auto",
    on_event: Listener = ignore_event,
    should_stop: ShouldStop = never_stop,
    parts: Parts | None = None,
) -> Generated:
    """Replace the files of the finished run in `path`; an option that is None is the run's own.

    The field comes from the run's checkpoint, so nothing is optimised again. Raises RunError where
    the run is not finished, and the other errors of `sds3d.errors`.
    """
    run = RunFolder.open(path, on_event)
    given = {"formats": formats, "max_faces": max_faces, "texture_size": texture_size}
    given = {name: value for name, value in given.items() if value is not None}
    mesh: MeshConfig = dataclasses.replace(run.config.mesh, **given)
    make_writable_folder(path)
    with run.locked(), _interruptible(run):
        before = run.result()
        if before is None or not run.checkpoint.exists():
            raise RunError(
                f"the run in {path} is not finished or its checkpoint is gone: "
                "complete it first with: sds3d generate --resume"
            )
        parts = parts or standard_parts(run.config.teacher)
        config = dataclasses.replace(_on_device(run, device), mesh=mesh)
        teacher = _load_same_teacher(parts, run, config)
        ended = not made_every_step(before, run.config)
        if ended:
            parts = dataclasses.replace(parts, optimize=_without_steps(parts.optimize))
        second = not ended or refine_checkpoint(path, run.emit).exists()
        return _complete(run, config, teacher, parts, {}, should_stop, before, second=second)


def _standard_parts(config: GenerateConfig) -> Parts:
    from .presets import missing_teacher

    try:
        return standard_parts(config.teacher)
    except TeacherError as error:
        raise TeacherError(missing_teacher(config, str(error))) from error


def _on_device(run: RunFolder, device: DeviceName) -> GenerateConfig:
    """The run's options for the device it was started on, or for another that was asked for."""
    resolved = resolve_device(run.config.device if device == "auto" else device)
    if resolved != run.config.device:
        text = f"the run began on {run.config.device} and goes on on {resolved}"
        run.emit(Warning(f"{text}: its result will differ a little from an uninterrupted one"))
    config = dataclasses.replace(run.config, device=resolved)
    _check_encoding(config, run.emit)
    return config


def _check_encoding(config: GenerateConfig, on_event: Listener) -> None:
    text = check_encoding(config)
    if text is not None:
        on_event(Warning(text))


def _load_teacher(parts: Parts, config: GenerateConfig, on_event: Listener) -> Teacher:
    from core.teachers.teacher import views_per_object

    from .embedded_guidance import check_supervision
    from .latent_representation import latent_reading
    from .supervision import check_learns, check_views
    from .teachers import check_prompt

    teacher = parts.load_teacher(config.teacher, config.device)
    # All that can be refused is, before the run has a folder.
    check_supervision(teacher, config.teacher, config.optimize, config.negative_prompt)
    check_views(config.optimize, views_per_object(teacher))
    check_learns(config.optimize, teacher)
    latent_reading(config.optimize, teacher)
    warning = check_prompt(teacher, config.prompt)
    if warning is not None:
        on_event(Warning(warning))
    return teacher


def _load_same_teacher(parts: Parts, run: RunFolder, config: GenerateConfig) -> Teacher:
    teacher = _load_teacher(parts, config, run.emit)
    if teacher.weights_sha256 != run.weights_sha256:
        raise TeacherError(
            f"the teacher's weights ({teacher.weights_sha256[:12]}) are not those that the run in "
            f"{run.path} began with ({run.weights_sha256[:12]}): generate the prompt anew"
        )
    _check_held(run, teacher)
    return teacher


def _check_held(run: RunFolder, teacher: Teacher) -> None:
    """Whether the teacher is held as when the run began: images of its size, weights of its dtype.

    Another size is refused, another dtype said.
    """
    before, now = run.held(), held_as(teacher)
    require_same_size(before, now, f"the run in {run.path}")
    if "dtype" in before and before["dtype"] != now.get("dtype"):
        run.emit(
            Warning(
                f"the run began with weights in {before['dtype']}, which are now in "
                f"{now.get('dtype')}: its result will differ a little from an uninterrupted one"
            )
        )


def made_every_step(result: dict[str, Any], config: GenerateConfig) -> bool:
    """Whether the run of this result.json went to its last step, not only to where it was ended."""
    steps = result.get("steps")
    return isinstance(steps, int) and steps >= config.optimize.all_steps


def _is_done(run: RunFolder, result: dict[str, Any]) -> bool:
    same_mesh = result["config"].get("mesh") == to_dict(run.config.mesh)
    return same_mesh and made_every_step(result, run.config) and not run.verify()


def _without_steps(optimize: Optimize) -> Optimize:
    """The loop for a checkpoint at which a run was ended: it loads the field and makes no step."""

    def load_only(config: GenerateConfig, teacher: Any, **how: Any) -> Optimized:
        # Every checkpoint is past the first step.
        options = dataclasses.replace(config.optimize, steps=1, extra_steps=0)
        return optimize(dataclasses.replace(config, optimize=options), teacher, **how)

    return load_only


def _complete(
    run: RunFolder,
    config: GenerateConfig,
    teacher: Teacher,
    parts: Parts,
    seconds: dict[str, float],
    should_stop: ShouldStop,
    before: dict[str, Any] | None,
    should_finish: ShouldStop = never_stop,
    *,
    second: bool = True,
) -> Generated:
    """Optimise from the checkpoint on, if there is one, then mesh, export and result.json.

    Where the checkpoint is already at the last step, what the result `before` says of the
    optimisation stays true. Without `second` a second stage is left out, though it was planned.
    """
    _stop_if_asked(run, should_stop)
    steps_done = 0

    def emit_and_count(event: Event) -> None:
        nonlocal steps_done
        steps_done += isinstance(event, Step)
        run.emit(event)

    def emit_or_stop(event: Event) -> None:
        _stop_if_asked(run, should_stop)
        run.emit(event)

    def asked_to_end() -> bool:
        return should_stop() or should_finish()

    def check_end(optimized: Optimized) -> None:
        if optimized.stopped:
            _stop_if_asked(run, should_stop)
            if not should_finish():
                raise Interrupted(run.path)

    started = time.perf_counter()
    run.emit(Stage("optimize"))
    refine_steps = config.optimize.refine.refine_steps if second else 0
    optimized = parts.optimize(
        first_stage(config),
        teacher,
        checkpoint=run.checkpoint,
        on_event=numbered(emit_and_count, 0, refine_steps),
        should_stop=asked_to_end,
    )
    check_end(optimized)
    report = report_of(run, config, optimized, held_as(teacher))
    seconds = {**seconds, "optimize": time.perf_counter() - started}
    if refine_steps > 0 and not optimized.stopped:
        started = time.perf_counter()
        run.emit(Stage("refine"))
        refined = refine(
            optimized,
            config,
            teacher,
            load_teacher=parts.load_teacher,
            optimize=parts.optimize,
            folder=run.path,
            on_event=emit_and_count,
            should_stop=asked_to_end,
        )
        optimized = refined.optimized
        check_end(optimized)
        report |= report_of_refining(report, refined)
        seconds["refine"] = time.perf_counter() - started
    if before is not None and steps_done == 0:
        seconds |= before["seconds"]
        report |= {name: before[name] for name in _OF_THE_OPTIMISATION if name in before}
    with run.staging() as staging:
        made = parts.write_files(optimized, config, staging, emit_or_stop)
        seconds |= made.pop("seconds", {})
        seconds["total"] = sum(value for name, value in seconds.items() if name != "total")
        return _finished(run, run.publish(staging, {**report, **made, "seconds": seconds}))


def _finished(run: RunFolder, result: dict[str, Any]) -> Generated:
    run.emit(Result(folder=run.path, result=result))
    return Generated(folder=run.path, result=result)


def _stop_if_asked(run: RunFolder, should_stop: ShouldStop) -> None:
    if should_stop():
        raise Interrupted(run.path)


@contextlib.contextmanager
def _interruptible(run: RunFolder) -> Iterator[None]:
    """A second Ctrl-C, outside the loop's reach, loses nothing that was saved either.

    Nor does it where memory does not suffice, which is said with the way to go on.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(run.path) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemory(run.path) from error
