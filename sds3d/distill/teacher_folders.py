"""A teacher given by its folder, `sds3d distill METHOD --teacher PATH`: of which ground it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import BadInput, TeacherError

INDEX = "model_index.json"
DIGITS_FILES = ("teacher.safetensors", "classifier.safetensors")
"""What scripts/train_digits_teacher.py writes."""

_GIVE = (
    "give the folder of a toybox teacher, as scripts/train_toybox_teacher.py writes it, or of a "
    "digits teacher, as scripts/train_digits_teacher.py does"
)


@dataclass(frozen=True, kw_only=True)
class FolderOfTeacher:
    """A teacher's folder, the ground that it is a teacher of, and its weights' SHA-256."""

    path: Path
    ground: Literal["digits", "toybox"]
    sha256: str

    @property
    def label(self) -> str:
        """For names of files: the ground, the folder, and which weights."""
        return f"{self.ground}-{self.path.name}-{self.sha256[:8]}"

    def require_same(self, sha256: str, student: Path) -> None:
        """Raise TeacherError unless these are the weights from which `student` was distilled."""
        if self.sha256 != sha256:
            raise TeacherError(
                f"the teacher in {self.path} is not that of {student}, whose hash begins with "
                f"{sha256[:12]}: put it back, or distil the student again"
            )


def folder_of_teacher(name: str) -> FolderOfTeacher | None:
    """What the folder `name` holds; None where there is no such folder.

    Raises BadInput for a folder whose teacher no student can be made of, with what can be given.
    """
    path = Path(name).expanduser().resolve()
    if not path.is_dir():
        return None
    if (path / INDEX).is_file():
        kind = _class_name(path / INDEX)
        if kind != "ToyboxTeacher":
            raise BadInput(f"--teacher {name} holds a {kind}, of which no student is made: {_GIVE}")
        from core.teachers.errors import TeacherWeightsError
        from core.teachers.toybox import weights_sha256

        try:
            return FolderOfTeacher(path=path, ground="toybox", sha256=weights_sha256(path))
        except TeacherWeightsError as error:
            raise TeacherError(str(error)) from error
    missing = [file for file in DIGITS_FILES if not (path / file).is_file()]
    if missing:
        raise BadInput(
            f"--teacher {name} holds neither {INDEX} nor {' and '.join(missing)}: {_GIVE}"
        )
    digest = hashlib.sha256()
    for file in DIGITS_FILES:
        digest.update(hashlib.sha256((path / file).read_bytes()).digest())
    return FolderOfTeacher(path=path, ground="digits", sha256=digest.hexdigest())


def _class_name(index: Path) -> str:
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{index} is damaged ({error}): {_GIVE}") from error
