"""Everything that the page shows of a job, or of an example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sds3d.errors import OutputError, Sds3dError
from sds3d.jobs.job import Job
from sds3d.jobs.states import ACTIVE, CONTINUABLE, FINISHED, State
from sds3d.ui import examples, pieces
from sds3d.ui.command import command_line
from sds3d.ui.desk import Desk
from sds3d.ui.examples import Example

NOTHING_YET = "The object appears here while it grows, from four sides."


@dataclass(frozen=True, kw_only=True)
class Look:
    """Plain values, so that a change is noticed."""

    status: str = ""
    picture: str = field(default_factory=lambda: pieces.waiting_picture(NOTHING_YET))
    plots: str = ""
    has_result: bool = False
    model: str | None = None
    report: str = ""
    downloads: str = ""
    command: str = ""
    can_stop: bool = False
    can_continue: bool = False
    is_done: bool = False
    is_live: bool = False


def look(desk: Desk, job: Job) -> Look:
    """How a job stands now."""
    service = desk.service
    reading = desk.watching.look(job)
    result = service.result(job)
    ahead = service.place_in_queue(job) if job.state is State.QUEUED else 0
    shown: dict[str, Any] = {
        "status": pieces.status(job, reading, result=result, ahead=ahead, trouble=desk.trouble()),
        "plots": f'<div class="plots">{pieces.plots(job, reading)}</div>',
        "can_stop": job.state is State.QUEUED or job.state in ACTIVE,
        "can_continue": job.state in CONTINUABLE,
        "is_done": job.state is State.DONE,
        "is_live": job.state not in FINISHED,
    }
    try:
        shown["command"] = command_line(job.options)
    except Sds3dError:
        shown["command"] = ""
    if result is not None:
        model, said = _model(lambda: desk.copy(job, "mesh.glb"))
        shown |= {
            "status": shown["status"] + said,
            "has_result": True,
            "picture": "",
            "model": model,
            "report": pieces.report(job, result),
            "downloads": pieces.downloads(job, result),
        }
        return Look(**shown)
    picture = pieces.growing(job, service.picture(job))
    if picture is not None:
        shown["picture"] = picture
    elif job.state in FINISHED:
        shown["picture"] = ""
    return Look(**shown)


def _model(copy: Callable[[], Path | None]) -> tuple[str | None, str]:
    """The copy for the viewer, or why there is none: what was made is whole, and the rest shown."""
    try:
        path = copy()
    except OutputError as error:
        return None, pieces.notice(f"the mesh is whole, but cannot be turned here: {error}")
    return None if path is None else str(path), ""


def look_at_example(desk: Desk, example: Example) -> Look:
    """An example's mesh, as if it had just been made."""
    model, said = _model(lambda: desk.copy_example(example))
    return Look(
        status=examples.status(example) + said,
        picture="",
        has_result=True,
        model=model,
        downloads=examples.downloads(example),
    )
