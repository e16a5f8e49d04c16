"""Students of the embedded teacher, `sds3d distill METHOD --teacher toybox`: training and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.distillation.field.guidance import GuidanceDistillation, GuidedProgressive
from core.distillation.method import Distillation
from core.teachers.errors import TeacherWeightsError
from core.teachers.toybox import ToyboxTeacher
from core.teachers.toybox_guided import ToyboxStudent, save_guided
from core.training import CHECKPOINT, DivergedError, History, Stage, train

from ..atomic import make_writable_folder
from ..errors import BadInput, DistillationStopped, Diverged, TeacherError
from ..events import Distilled, DistillStep, Event
from ..events import Stage as StageEvent
from ..teachers import TOYBOX_FOLDER
from .catalogue import find_method
from .pictures import draw_history
from .students import CARD, TOYBOX_FORMAT, WEIGHTS
from .teacher_folders import folder_of_teacher
from .toybox import (
    SCALES,
    Pictures,
    asked,
    guidance_error,
    imagined,
    make_toybox_method,
    require_fitting,
    student_and_teacher,
    toybox_ground,
)

if TYPE_CHECKING:
    from .run import DistillConfig

TEACHER = "teacher"
"""Folder, in a student's, of the teacher with guidance built in: --teacher takes it."""

PICTURES = 8192
MEASURED = 128
DRAWN = 16
MOST_DRAWN = 256
"""Pictures are drawn in one batch."""


def distill_toybox(
    config: DistillConfig,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    more_pictures: Callable[[ToyboxTeacher], Pictures] | None = None,
    pictures: int = PICTURES,
    base: Path = TOYBOX_FOLDER,
) -> Path:
    """Train, measure and write a student, from where an interrupted one of its name stopped.

    Args:
        config: Its `samples` are not asked for: a few pictures are drawn.
        on_event: Told the stages and the progress.
        should_stop: Asked after every step; a checkpoint is kept.
        more_pictures: What the student is shown beside the teacher's own pictures.
        pictures: How many of the latter are made.
        base: The teacher's folder.

    Returns:
        The student's folder: `student.json`, `student.safetensors` (what it adds to the teacher),
        `samples.png` (the teacher's pictures below the student's), `history.png`, and for guidance
        distillation `teacher`, which --teacher takes.

    Raises BadInput for what does not go together, TeacherError, Diverged, DistillationStopped.
    """
    find_method(config.method)
    require_fitting(config.method, config.nfe)
    try:
        teacher = ToyboxTeacher.load(base)
        network = ToyboxTeacher.load(base, dtype=torch.float32).network
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error
    folder = config.folder
    make_writable_folder(folder)
    on_event(StageEvent("pictures"))
    shown = imagined(teacher, pictures, config.seed)
    if more_pictures is not None:
        shown = shown + more_pictures(teacher)
    ground = toybox_ground(teacher, network, shown)
    method = make_toybox_method(
        config.method,
        ground,
        steps=config.steps,
        nfe=config.nfe,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )
    history = _train(method, config, folder, on_event, should_stop)
    on_event(StageEvent("measure"))
    first = method.guidance if isinstance(method, GuidedProgressive) else method
    figures: dict[str, float] = {"training_seconds": round(history.seconds, 1)}
    if isinstance(first, GuidanceDistillation):
        scales = (2.0, 4.0, SCALES[1])
        figures |= guidance_error(first.denoiser, ground, scales, MEASURED, config.seed + 2)
        student = first.student
        assert isinstance(student, ToyboxStudent)
        save_guided(
            student,
            folder / TEACHER,
            base_sha256=teacher.weights_sha256,
            guidance_scales=SCALES,
        )
    made, wanted = student_and_teacher(method, config.nfe, DRAWN, config.seed + 1)
    figures["to_teacher"] = float((made - wanted).square().mean().sqrt())
    _sheet(made, wanted, folder / "samples.png")
    draw_history(history, folder / "history.png")
    _save(method, config, folder, figures, base, teacher.weights_sha256)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    on_event(Distilled(folder=folder, figures=figures, teacher=[]))
    return folder


def _train(
    method: Distillation,
    config: DistillConfig,
    folder: Path,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> History:
    total = sum(stage.steps for stage in method.stages())
    stopped = False

    def progress(stage: Stage, history: History) -> bool:
        nonlocal stopped
        on_event(
            DistillStep(
                stage=stage.name,
                step=history.step,
                steps=total,
                losses={k: series[-1] for k, series in history.losses.items()},
                eta_seconds=history.seconds / history.step * (total - history.step),
            )
        )
        stopped = should_stop() and history.step < total
        return stopped

    try:
        history = train(method, seed=config.seed, out=folder, progress=progress)
    except DivergedError as error:
        raise Diverged(str(error)) from error
    if stopped:
        raise DistillationStopped(folder, history.step, total)
    return history


def _sheet(made: Tensor, wanted: Tensor, path: Path, columns: int = 16) -> None:
    """Rows of pictures in pairs: the student's, and the teacher's from the same noise below."""
    parts = [
        # White where the last row ends early.
        nn.functional.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=1.0)
        for pair in zip(made.split(columns), wanted.split(columns), strict=True)
        for row in pair
    ]
    columns = min(columns, len(made))
    rows = torch.stack([part[:columns] for part in parts]).clamp(-1, 1)
    pixels = ((rows + 1) * 127.5).round().to(torch.uint8).permute(0, 3, 1, 4, 2)
    Image.fromarray(pixels.reshape(len(rows) * 64, -1, 3).numpy()).save(path, "PNG")


def _save(
    method: Distillation,
    config: DistillConfig,
    folder: Path,
    figures: dict[str, float],
    base: Path,
    base_sha256: str,
) -> None:
    tensors = {
        f"{name}.{key}": value.half().contiguous()
        for name, module in method.modules().items()
        if isinstance(module, ToyboxStudent)
        for key, value in module.delta().items()
    }
    save_file(tensors, folder / WEIGHTS)
    options = {k: v for k, v in asdict(config).items() if k not in ("out", "samples")}
    document: dict[str, Any] = {
        "format": TOYBOX_FORMAT,
        **options,
        "base": None if base == TOYBOX_FOLDER else str(base.resolve()),
        "base_sha256": base_sha256,
        "guidance_scales": SCALES,
        "measured": figures,
    }
    partial = folder / f"{CARD}.partial"
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / CARD)


def draw_toybox_student(folder: Path, path: Path, *, nfe: int | None, n: int, seed: int) -> None:
    """Write a PNG of n pictures of a student, the teacher's of the same noise below them.

    Prompts and cameras are drawn from `seed`. Raises BadInput for a damaged student, a number of
    evaluations that it has no student for and too many pictures, TeacherError for a teacher that
    is not its own.
    """
    if n > MOST_DRAWN:
        raise BadInput(f"--samples is {n}: of a toybox student at most {MOST_DRAWN} are drawn")
    try:
        document = json.loads((folder / CARD).read_text(encoding="utf-8"))
        base = TOYBOX_FOLDER if document.get("base") is None else Path(document["base"])
        name, own_nfe = str(document["method"]), int(document["nfe"])
        steps, rate = int(document["steps"]), float(document["learning_rate"])
        sha256 = str(document["base_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / CARD} is damaged ({error}): distil the student again") from error
    given = folder_of_teacher(str(base))
    if given is None:
        raise TeacherError(f"the teacher of {folder} is no longer in {base}: put it back")
    given.require_same(sha256, folder)
    teacher = ToyboxTeacher.load(base)
    network = ToyboxTeacher.load(base, dtype=torch.float32).network
    method = make_toybox_method(
        name,
        toybox_ground(teacher, network, asked(teacher, n, seed)),
        steps=steps,
        nfe=own_nfe,
        batch=n,
        learning_rate=rate,
        seed=seed,
    )
    _load_weights(method, folder / WEIGHTS)
    nfe = nfe or own_nfe
    if isinstance(method, GuidanceDistillation) and nfe not in method.card.nfe:
        raise BadInput(
            f"--nfe is {nfe}: a student of guidance is meant for "
            f"{', '.join(map(str, method.card.nfe))}"
        )
    try:
        made, wanted = student_and_teacher(method, nfe, n, seed)
    except ValueError as error:
        raise BadInput(f"--nfe is {nfe}: {error}") from error
    _sheet(made, wanted, path)


def _load_weights(method: Distillation, path: Path) -> None:
    try:
        tensors = load_file(path)
        for name, module in method.modules().items():
            if isinstance(module, ToyboxStudent):
                prefix = f"{name}."
                module.load_delta(
                    {
                        key.removeprefix(prefix): value.float()
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
                )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{path} is missing or damaged ({reason}): distil the student again"
        ) from error
