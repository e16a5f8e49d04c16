"""What can be wrong with a teacher or with what it is asked for."""

from __future__ import annotations

__all__ = ["TeacherOptionError", "TeacherWeightsError", "UnknownSubjectError"]


class TeacherWeightsError(RuntimeError):
    """A teacher's folder is missing, incomplete or damaged. The text says which and what to do."""


class TeacherOptionError(ValueError):
    """An option of loading that this kind of teacher does not have, or with a value that it cannot
    have. The text names the option and the remedy."""


class UnknownSubjectError(ValueError):
    """A prompt names nothing that the teacher can draw. The text names the nearest subjects."""
