"""Everything that the page shows of a job, or of an example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sds3d.errors import Sds3dError
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
        model = desk.copy(job, "mesh.glb")
        shown |= {
            "has_result": True,
            "picture": "",
            "model": None if model is None else str(model),
            "report": pieces.report(job, result),
            "downloads": pieces.downloads(job, result),
        }
        return Look(**shown)
    picture = service.picture(job)
    if picture is not None:
        shown["picture"] = pieces.growing(job, picture.stat().st_mtime_ns)
    elif job.state in FINISHED:
        shown["picture"] = ""
    return Look(**shown)


def look_at_example(desk: Desk, example: Example) -> Look:
    """An example's mesh, as if it had just been made."""
    return Look(
        status=examples.status(example),
        picture="",
        has_result=True,
        model=str(desk.copy_example(example)),
        downloads=examples.downloads(example),
    )
