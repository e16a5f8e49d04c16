"""Students on disk: weights, and the few words from which their method is made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from safetensors.torch import load_file, save_file
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.method import Distillation

from ..errors import BadInput, TeacherError
from .catalogue import card_as_dict, find_method, make_method
from .grounds import GroundName, NamedGround, named_ground
from .teacher_folders import folder_of_teacher

WEIGHTS = "student.safetensors"
CARD = "student.json"
SAMPLES = "samples.safetensors"
FORMAT = "sds3d-student/1"
TOYBOX_FORMAT = "sds3d-toybox-student/1"


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What determines a student beside its weights.

    teacher_folder, teacher_sha256   of a teacher that was given by its folder
    """

    method: str
    ground: GroundName
    steps: int
    nfe: int
    batch: int
    learning_rate: float
    seed: int
    teacher_folder: str | None = None
    teacher_sha256: str | None = None


def is_toybox_student(folder: Path) -> bool:
    """Whether a student of a toybox teacher lies there; damaged ones are left to those who load."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))["format"] == TOYBOX_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(card: StudentCard, ground: NamedGround) -> Distillation:
    """The method of `card`, untrained. Raises BadInput where its parts do not go together."""
    return make_method(
        find_method(card.method),
        ground,
        steps=card.steps,
        nfe=card.nfe,
        batch=card.batch,
        learning_rate=card.learning_rate,
        seed=card.seed,
    )


def save_student(
    method: Distillation,
    card: StudentCard,
    folder: Path,
    figures: dict[str, Any],
    teacher: Sequence[Mapping[str, float]],
) -> None:
    """Write weights and card. Each file is whole or not there.

    `figures` are what was measured of the student, `teacher` the same of its teacher in as many
    evaluations and in many.
    """
    tensors = {
        f"{name}.{key}": value.detach().contiguous()
        for name, module in method.modules().items()
        for key, value in module.state_dict().items()
    }
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS)
    text = json.dumps(
        {
            "format": FORMAT,
            **asdict(card),
            "card": card_as_dict(type(method)),
            "measured": figures,
            "teacher": [dict(found) for found in teacher],
        },
        indent=1,
    )
    partial = folder / f"{CARD}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / CARD)


def save_samples(samples: Tensor, cond: Conditioning | None, teacher: Tensor, folder: Path) -> None:
    """Write samples.safetensors: `samples` [N, ...], `labels` [N] where they were asked for, and
    the `teacher`'s samples [N, ...] of the same seed.
    """
    tensors = {"samples": samples.contiguous(), "teacher": teacher.contiguous()}
    if cond is not None and cond.labels is not None:
        tensors["labels"] = cond.labels.contiguous()
    partial = folder / f"{SAMPLES}.partial"
    save_file(tensors, partial)
    partial.replace(folder / SAMPLES)


def load_student(folder: Path) -> tuple[Distillation, StudentCard, NamedGround]:
    """A student as `save_student` wrote it. Raises BadInput for anything else."""
    try:
        document = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["ground"] not in get_args(GroundName):
            raise ValueError(f"its format is {document['format']!r}")
        card = StudentCard(
            method=str(document["method"]),
            ground=cast(GroundName, document["ground"]),
            steps=int(document["steps"]),
            nfe=int(document["nfe"]),
            batch=int(document["batch"]),
            learning_rate=float(document["learning_rate"]),
            seed=int(document["seed"]),
            teacher_folder=document.get("teacher_folder"),
            teacher_sha256=document.get("teacher_sha256"),
        )
    except OSError as error:
        raise BadInput(
            f"{folder} holds no student ({error.strerror}): give the folder that "
            "`sds3d distill` printed"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / CARD} is damaged ({error}): distil the student again") from error
    ground = named_ground(card.ground, _teacher_of(card, folder))
    ground = ground.serving(find_method(card.method).card)
    method = make(card, ground)
    try:
        tensors = load_file(folder / WEIGHTS)
        for name, module in method.modules().items():
            prefix = f"{name}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{folder / WEIGHTS} is missing or damaged ({reason}): distil the student again"
        ) from error
    return method, card, ground


def _teacher_of(card: StudentCard, student: Path) -> Path | None:
    """The folder of a teacher that was given by its folder, if it is still the same."""
    if card.teacher_folder is None:
        return None
    given = folder_of_teacher(card.teacher_folder)
    if given is None:
        raise TeacherError(
            f"the teacher of {student} is no longer in {card.teacher_folder}: put it back, or "
            "distil the student again"
        )
    given.require_same(str(card.teacher_sha256), student)
    return given.path
