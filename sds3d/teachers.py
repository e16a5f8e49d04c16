"""Teachers by name, and their errors in the user's terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.teachers.errors import TeacherWeightsError, UnknownSubjectError

from .assets import shipped
from .config import DeviceName, TeacherName
from .errors import PromptError, TeacherError

if TYPE_CHECKING:
    from core.teachers.toybox import ToyboxTeacher

EMBEDDED = "toybox"

TOYBOX_FOLDER = shipped("toybox")
"""The embedded teacher."""

PINNED_HASH = "weights.sha256"
"""File in a teacher's folder with the hash that its weights must have."""


class Reading(Protocol):
    """How a teacher reads a prompt."""

    @property
    def warning(self) -> str | None: ...


class ReadsPrompts(Protocol):
    """A teacher, as far as prompts go."""

    def check_prompt(self, prompt: str) -> Reading: ...


def teacher_folder(name: TeacherName) -> Path:
    """The folder of the teacher "toybox", or `name` itself where it is a teacher's folder.

    Imports nothing heavy. Raises TeacherError where there is none.
    """
    folder = TOYBOX_FOLDER if name == EMBEDDED else Path(name)
    if (folder / "model_index.json").is_file():
        return folder
    if name == EMBEDDED:
        raise TeacherError(
            f"the embedded teacher is missing from {folder}: install the package again, "
            "or give the folder of a teacher with --teacher"
        )
    raise TeacherError(
        f"--teacher is {name!r}: give {EMBEDDED}, or a folder that scripts/train_toybox_teacher.py "
        "made"
    )


def load_teacher(name: TeacherName, device: DeviceName) -> ToyboxTeacher:
    """The teacher of that name or folder, on "cpu" or "cuda".

    Raises TeacherError where its weights are missing, damaged, or not those that were shipped.
    """
    folder = teacher_folder(name)
    from core.teachers.toybox import ToyboxTeacher

    try:
        teacher = ToyboxTeacher.load(folder, device=device)
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error
    pinned = pinned_sha256(folder)
    if pinned is not None and pinned != teacher.weights_sha256:
        raise TeacherError(
            f"the teacher in {folder} is damaged or was exchanged (its hash begins with "
            f"{teacher.weights_sha256[:12]}, not {pinned[:12]}): install the package again"
        )
    return teacher


def pinned_sha256(folder: Path) -> str | None:
    """The hash that the weights in `folder` must have, None where none is recorded."""
    try:
        return (folder / PINNED_HASH).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"cannot read {folder / PINNED_HASH} ({error}): install the package again"
        ) from error


def check_prompt(teacher: ReadsPrompts, prompt: str) -> str | None:
    """One line that names the words which the teacher does not know, None where it knows all.

    Raises PromptError, with the nearest things it does know, where it can draw nothing of it.
    """
    try:
        return teacher.check_prompt(prompt).warning
    except UnknownSubjectError as error:
        raise PromptError(str(error)) from error
