"""`--cuda-graphs`: the teacher of a run asked by graphs, and what a user is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .events import Event, Warning
from .optimize_config import OptimizeConfig

__all__ = ["asked_by_graphs"]


@contextmanager
def asked_by_graphs(
    options: OptimizeConfig, teacher: object, on_event: Callable[[Event], None]
) -> Iterator[None]:
    """Within the block the teacher is asked by CUDA graphs, where the options want it.

    Where it cannot be, one Warning says why and nothing else changes.
    """
    if not options.cuda_graphs:
        yield
        return
    from core.teachers.graphs import graphed

    def note(reason: str) -> None:
        on_event(Warning(f"--cuda-graphs: the teacher is asked without graphs: {reason}"))

    with graphed(teacher, note=note):
        yield
