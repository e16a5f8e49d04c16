"""What ships beside the embedded teacher: its students, where they are there."""

from __future__ import annotations

from sds3d.assets import shipped
from sds3d.teachers import EMBEDDED, WORDS

STUDENTS = {"toybox-guided": "guidance"}
"""Names of folders among the assets, and the methods that made them."""


def shipped_students() -> list[str]:
    """Those that are there."""
    return [name for name in STUDENTS if _is_there(name)]


def shipped_teachers() -> tuple[str, ...]:
    """The teachers that every place can offer: the embedded ones."""
    return (EMBEDDED, *shipped_students(), *filter(_is_there, [WORDS]))


def _is_there(name: str) -> bool:
    return (shipped(name) / "model_index.json").is_file()
