"""The files that the pages show and offer: those that a job's result names, and nothing else."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from sds3d.config_json import slug
from sds3d.errors import Sds3dError
from sds3d.jobs.job import Job
from sds3d.jobs.service import JobService

OBJ_ZIP = "mesh-obj.zip"
GROWING = "growing.png"
RESULT = "result.json"
STUDENT_FILES = (
    "student.png",
    "teacher.png",
    "teacher-few.png",
    "samples.png",
    "history.png",
    "student.json",
    "student.safetensors",
)

_TYPES = {
    ".glb": "model/gltf-binary",
    ".json": "application/json",
    ".mp4": "video/mp4",
    ".mtl": "text/plain; charset=utf-8",
    ".obj": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".zip": "application/zip",
}


def obj_zip(service: JobService, job: Job) -> bytes | None:
    """The OBJ with its material and texture in one archive; None where there is none."""
    result = service.result(job) or {"files": {}}
    names = [n for n in result["files"] if re.fullmatch(r"mesh(-\w+)?\.(obj|mtl|png)", n)]
    if "mesh.obj" not in names:
        return None
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            path = service.file(job, name)
            if path is not None:
                archive.write(path, name)
    return packed.getvalue()


def job_file(service: JobService, job: Job, name: str) -> Path | None:
    """A file of a job: the picture of the growing object, result.json, or what that names."""
    if name == GROWING:
        return service.picture(job)
    if name == RESULT:
        folder = service.folder(job)
        return folder / RESULT if folder is not None and service.result(job) is not None else None
    return service.file(job, name)


def download_name(job: Job, name: str) -> str:
    """The name under which a browser saves it: the prompt's words before it."""
    return f"{slug(job.prompt)}-{name}"


def routes(service: JobService, students: Path) -> list[Route]:
    """`/jobs/<id>/<name>` and `/students/<folder>/<name>`."""

    def of_job(job_id: str, name: str, attached: bool) -> Response:
        job = service.get(job_id)
        as_file = {"Cache-Control": "no-cache"}
        if attached:
            as_file["Content-Disposition"] = f'attachment; filename="{download_name(job, name)}"'
        if name == OBJ_ZIP:
            packed = obj_zip(service, job)
            return _nothing() if packed is None else Response(packed, 200, as_file, _type(name))
        path = job_file(service, job, name)
        if path is None or path.suffix not in _TYPES:
            return _nothing()
        if name == GROWING:
            return _whole(path, as_file)
        return FileResponse(path, headers=as_file, media_type=_type(name))

    def of_student(folder: str, name: str, attached: bool) -> Response:
        path = student_file(students, folder, name)
        if path is None:
            return _nothing()
        how = {"Cache-Control": "no-cache"}
        if attached:
            how["Content-Disposition"] = f'attachment; filename="{folder}-{name}"'
        return _whole(path, how)

    return [
        Route("/jobs/{key}/{name}", _endpoint(of_job)),
        Route("/students/{key}/{name}", _endpoint(of_student)),
    ]


def student_file(students: Path, folder: str, name: str) -> Path | None:
    """A file of a student; None for anything else, however it is spelt."""
    if name not in STUDENT_FILES or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", folder):
        return None
    path = (students / folder / name).resolve()
    return path if path.is_relative_to(students.resolve()) and path.is_file() else None


def _endpoint(serve: Callable[[str, str, bool], Response]) -> Any:
    async def endpoint(request: Request) -> Response:
        key, name = request.path_params["key"], request.path_params["name"]
        attached = "download" in request.query_params
        try:
            return await run_in_threadpool(serve, key, name, attached)
        except Sds3dError:
            return _nothing()

    return endpoint


def _whole(path: Path, headers: dict[str, str]) -> Response:
    """A small file that is replaced while it is asked for, in one read.

    FileResponse measures a file before it opens it, and would send of a new one the length of the
    one before.
    """
    try:
        return Response(path.read_bytes(), 200, headers, _type(path.name))
    except FileNotFoundError:
        return _nothing()


def _type(name: str) -> str:
    return _TYPES.get(Path(name).suffix, "application/octet-stream")


def _nothing() -> Response:
    return PlainTextResponse("there is nothing here\n", 404)
