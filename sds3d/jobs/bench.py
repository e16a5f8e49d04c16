"""The parts that do a worker's work, and the teachers that it keeps for the next job."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sds3d.config import DeviceName, TeacherName
from sds3d.errors import TeacherError, is_out_of_memory
from sds3d.events import Listener, Stage
from sds3d.generate import Parts, Teacher, standard_parts, with_loaded
from sds3d.jobs.limits import LimitsConfig
from sds3d.teachers import look_at

MOST_TEACHERS = 2
"""So that jobs of two teachers in turn do not read each anew."""
MOST_OF_MEMORY = 1 / 8
"""What those that all workers of a device keep may take of it together; a larger one is alone."""

Key = tuple[TeacherName, DeviceName]


class Bench:
    """The parts that do the work, with the teachers that were used last kept for the next job.

    `previews` is False where `make_parts` gives a loop that shows its state to no observer.
    `weight_bytes` says what a teacher of that name weighs and `memory_bytes` what its device has;
    None where that is not known, and then it is kept alone. Of what may be kept each of `workers`
    has an equal share.
    """

    def __init__(
        self,
        make_parts: Callable[[TeacherName], Parts] = standard_parts,
        *,
        previews: bool = True,
        limits: LimitsConfig | None = None,
        workers: int = 1,
        weight_bytes: Callable[[TeacherName], int | None] | None = None,
        memory_bytes: Callable[[DeviceName], int | None] | None = None,
    ) -> None:
        self._make_parts = make_parts
        self.previews = previews
        self.limits = limits or LimitsConfig()
        self._share = MOST_OF_MEMORY / workers
        self._weight_bytes = weight_bytes or _weight_bytes
        self._memory_bytes = memory_bytes or _memory_bytes
        # The one that was used last is the last.
        self._loaded: dict[Key, Teacher] = {}

    def parts(
        self, name: TeacherName, device: DeviceName, on_event: Listener
    ) -> tuple[Parts, Teacher]:
        """The parts for this teacher, and the teacher, loaded unless it was kept."""
        parts = self._make_parts(name)
        key: Key = (name, device)
        teacher = self._loaded.pop(key, None)
        if teacher is None:
            # Before the new one comes, so that no more than may be kept is ever in memory.
            self._make_room(key)
            on_event(Stage("teacher"))
            teacher = self._load(parts, name, device)
        self._loaded[key] = teacher
        return with_loaded(parts, name, device, teacher), teacher

    def views_together(self) -> int | None:
        """How many views the teacher that was used last judges together; None where none was."""
        if not self._loaded:
            return None
        from core.teachers.teacher import views_per_object

        teacher: Any = next(reversed(self._loaded.values()))
        return views_per_object(teacher)

    def forget_others(self) -> bool:
        """Keep no teacher but the one that was used last; whether there was another."""
        others = list(self._loaded)[:-1]
        for key in others:
            del self._loaded[key]
        return bool(others)

    def _load(self, parts: Parts, name: TeacherName, device: DeviceName) -> Teacher:
        """The teacher, read once more without the others where they leave it too little memory."""
        try:
            return parts.load_teacher(name, device)
        except Exception as error:
            if not self._loaded or not is_out_of_memory(error):
                raise
        # Out here, because the exception's own frames no longer hold what was read of it.
        self._loaded.clear()
        free_memory()
        return parts.load_teacher(name, device)

    def _make_room(self, key: Key) -> None:
        while self._loaded and not self._fit([*self._loaded, key]):
            del self._loaded[next(iter(self._loaded))]

    def _fit(self, keys: list[Key]) -> bool:
        if len(keys) > MOST_TEACHERS:
            return False
        memory = [self._memory_bytes(device) for _, device in keys]
        weights = [self._weight_bytes(name) for name, _ in keys]
        if None in memory or None in weights:
            return False
        # Counted as if they were on one device, the smaller where they are not.
        return sum(filter(None, weights)) <= self._share * min(filter(None, memory), default=0)


def free_memory() -> None:
    """Give back to the device what nothing holds any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weight_bytes(name: TeacherName) -> int | None:
    """What lies in its folder; in memory it may be half of it, or twice as much."""
    try:
        return look_at(name, fetch=False).weight_bytes
    except TeacherError:
        return None


def _memory_bytes(device: DeviceName) -> int | None:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
