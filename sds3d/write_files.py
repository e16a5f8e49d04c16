"""From what was optimised to a run's files; each particle writes its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import GenerateConfig
from .errors import EmptyField
from .events import Listener, Warning
from .export import MeshRejectedError

if TYPE_CHECKING:
    from .optimize import Optimized


def write_files(
    optimized: Optimized, config: GenerateConfig, folder: Path, on_event: Listener
) -> dict[str, Any]:
    """Write the first particle's files to `folder` and those of others to `folder/particle-<n>`.

    A particle with nothing to write is passed over with a warning, and the next takes its place;
    where none has anything, the first one's error is raised. Returns what the first wrote measured,
    with the seconds of all; of the others their folder and figures under "particles".
    """
    figures: dict[str, Any] = {}
    others: list[dict[str, Any]] = []
    failed: Exception | None = None
    for number, particle in enumerate(optimized.particles, start=1):
        place = folder / f"particle-{number}" if figures else folder
        place.mkdir(exist_ok=True)
        try:
            made = particle.write_files(config, place, on_event)
        except (EmptyField, MeshRejectedError) as error:
            if len(optimized.particles) == 1:
                raise
            failed = failed or error
            on_event(Warning(f"particle {number}: {error}"))
            continue
        if not figures:
            figures = made
            continue
        seconds = made.pop("seconds")
        for stage, value in seconds.items():
            figures["seconds"][stage] += value
        others.append({"folder": place.name, **made})
    if not figures:
        assert failed is not None
        raise failed
    return {**figures, "particles": others} if others else figures
