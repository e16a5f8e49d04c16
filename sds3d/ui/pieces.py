"""Pieces of HTML about a job. Whatever a user wrote is escaped here and nowhere else."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sds3d.events import SOUND
from sds3d.jobs.job import Job
from sds3d.jobs.states import ACTIVE, State
from sds3d.progress import eta_text
from sds3d.ui.files import GROWING, OBJ_ZIP, RESULT
from sds3d.ui.plots import line_plot
from sds3d.ui.watching import Reading

STAGES = {
    "teacher": "loading the teacher",
    "optimize": "growing the object",
    "refine": "refining the mesh",
    "mesh": "making the mesh",
    "export": "writing the files",
}
STATES = {
    State.QUEUED: "Waiting",
    State.RUNNING: "Running",
    State.STOPPING: "Stopping",
    State.DONE: "Done",
    State.STOPPED: "Stopped",
    State.CANCELLED: "Cancelled",
    State.FAILED: "Failed",
}
NOT_JUDGED = "not judged yet"


def url(*parts: str) -> str:
    """An address of this server, ready for an attribute."""
    return html.escape("/" + "/".join(quote(part, safe="") for part in parts))


def notice(text: str, kind: str = "error") -> str:
    """A sentence to the user; "" for none."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<p class="notice {kind}" role="{role}">{html.escape(text)}</p>'


def status(
    job: Job,
    reading: Reading,
    *,
    result: dict[str, Any] | None = None,
    ahead: int = 0,
    trouble: str | None = None,
) -> str:
    """The card at the head of a job: state, progress, pace, health, and what went wrong."""
    facts = [text for text in _facts(job, reading, ahead) if text]
    share = min(1.0, job.step / max(1, job.steps))
    bar = ""
    if job.state in ACTIVE or job.state is State.QUEUED:
        bar = f'<progress value="{share:.4f}" max="1" aria-label="progress">{share:.0%}</progress>'
    notes = [notice(text, "warning") for text in reading.warnings]
    if job.degraded:
        notes.append(notice(f"Memory was short: {job.degraded}.", "warning"))
    if job.reason:
        kind = "error" if job.state is State.FAILED else "warning"
        notes.append(notice(f"{job.reason[:1].upper()}{job.reason[1:]}.", kind))
    if job.state is State.STOPPED and result is None and not job.reason:
        notes.append(notice("It waits after its first steps: Continue takes it on.", "hint"))
    if trouble and job.state in (State.QUEUED, *ACTIVE):
        notes.append(notice(trouble))
    return (
        f'<section class="status {job.state}" data-state="{job.state}">'
        f"<h3><span class=state>{STATES[job.state]}</span> {html.escape(job.prompt)}</h3>"
        f"{bar}<p class=facts>{' · '.join(map(html.escape, facts))}</p>"
        f"<p class=health>{html.escape(health(job, reading, result))}</p>{''.join(notes)}</section>"
    )


def _facts(job: Job, reading: Reading, ahead: int) -> list[str]:
    seed = f"seed {job.config['seed']}, {job.config['preset']}"
    if job.state is State.QUEUED:
        return ["next in the queue" if ahead == 0 else f"{ahead} before it", seed]
    steps = f"step {job.step} of {job.steps}"
    if job.state in ACTIVE:
        pace, eta = reading.steps_per_second, job.eta_seconds
        growing = reading.stage in ("optimize", "refine")
        return [
            STAGES.get(reading.stage or "", "starting"),
            steps,
            f"{pace:.1f} steps/s" if pace is not None and growing else "",
            f"{eta_text(eta)} left" if eta is not None and growing and job.step else "",
            seed,
        ]
    took = "" if job.seconds is None else f"in {eta_text(job.seconds)}"
    return [steps if job.step else "", "made before" if job.reused else took, seed]


def health(job: Job, reading: Reading, result: dict[str, Any] | None) -> str:
    """How the object does, in plain words; a result knows it best."""
    if job.state in (State.QUEUED, State.CANCELLED, State.FAILED) or not reading.opacity:
        return ""
    if result is not None:
        return "; ".join(map(str, result.get("health", []))) or SOUND
    if reading.health is not None:
        return f"{reading.health} (seen at step {reading.health_step})"
    return SOUND if reading.is_judged else NOT_JUDGED


def growing(job: Job, path: Path | None) -> str | None:
    """The latest picture of the object from four sides, in `path`; None where there is none."""
    try:
        version = None if path is None else path.stat().st_mtime_ns
    except OSError:
        # Its run was deleted in this moment.
        return None
    if version is None:
        return None
    address = f"{url('jobs', job.id, GROWING)}?v={version}"
    alt = html.escape(f"{job.prompt}, from four sides")
    return f'<img class="growing" src="{address}" alt="{alt}">'


def waiting_picture(text: str) -> str:
    """What stands in the picture's place while there is none."""
    return f'<div class="growing none">{html.escape(text)}</div>'


def plots(job: Job, reading: Reading) -> str:
    """The course of opacity, and of the teacher's agreement where it was measured."""
    return "".join(
        (
            line_plot("Opacity", {"mean": reading.opacity}, steps=job.steps),
            line_plot(
                "Agreement with the teacher",
                {"|x - D(x_t)|²": reading.agreement},
                steps=job.steps,
                note="lower is better",
            ),
        )
    )


def report(job: Job, result: dict[str, Any]) -> str:
    """Film, pictures and figures of the finished mesh."""
    film, table = _film(job, result), _statistics(result)
    return f'<div class="report"><div>{film}</div>{table}</div>'


def _film(job: Job, result: dict[str, Any]) -> str:
    pieces = []
    if "turntable.mp4" in result["files"]:
        source = url("jobs", job.id, "turntable.mp4")
        pieces.append(
            f'<video class="turntable" src="{source}" autoplay muted loop playsinline controls '
            'aria-label="turntable of the mesh"></video>'
        )
    if "preview.png" in result["files"]:
        source = url("jobs", job.id, "preview.png")
        pieces.append(
            f'<img class="sheet" src="{source}" alt="the mesh from eight sides" loading="lazy">'
        )
    return "".join(pieces)


def _statistics(result: dict[str, Any]) -> str:
    mesh = result.get("mesh", {})
    rows: list[tuple[str, str]] = []
    rows += [
        (name.capitalize(), f"{mesh[name]:,}".replace(",", " "))
        for name in ("faces", "vertices", "components")
        if isinstance(mesh.get(name), int)
    ]
    if isinstance(mesh.get("watertight"), bool):
        rows.append(("Watertight", "yes" if mesh["watertight"] else "no"))
    if isinstance(mesh.get("size"), list):
        rows.append(("Size", " x ".join(f"{side:.2f}" for side in mesh["size"]) + " m"))
    if isinstance(mesh.get("texture_size"), list):
        rows.append(("Texture", " x ".join(map(str, mesh["texture_size"])) + " px"))
    if isinstance(result.get("iso_iou"), (int, float)):
        rows.append(("Silhouettes like the field's", f"{result['iso_iou']:.1%}"))
    total = result.get("seconds", {}).get("total")
    if isinstance(total, (int, float)):
        device = result.get("machine", {}).get("device", "")
        rows.append(("Made in", f"{eta_text(total)} on {device}" if device else eta_text(total)))
    body = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f'<table class="statistics">{body}</table>'


def downloads(job: Job, result: dict[str, Any]) -> str:
    """Links to the files."""
    files = result["files"]
    offered = [
        ("GLB", "mesh.glb", "mesh.glb" in files),
        ("OBJ (zip)", OBJ_ZIP, "mesh.obj" in files),
        ("Turntable", "turntable.mp4", "turntable.mp4" in files),
        ("result.json", RESULT, True),
    ]
    links = "".join(
        f'<a class="download" href="{url("jobs", job.id, name)}?download" download>{title}</a>'
        for title, name, is_there in offered
        if is_there
    )
    return f'<nav class="downloads" aria-label="downloads">{links}</nav>'
