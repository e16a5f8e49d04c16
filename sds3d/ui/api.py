"""The same as functions, for `gradio_client`; docs/api.md shows their use."""

# gradio offers these names without exporting them in its types.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import reprlib
from typing import Any

import gradio as gr

from sds3d.errors import ConfigError, Sds3dError
from sds3d.jobs.job import Job
from sds3d.jobs.states import FINISHED
from sds3d.ui.desk import Desk, Wish, require_text


class Api:
    """The public endpoints. A mistake of the caller comes back as an error with its sentence."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def submit(
        self,
        prompt: str,
        negative_prompt: str = "",
        seed: int = 0,
        preset: str = "balanced",
        teacher: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        resolution: int | None = None,
        max_faces: int | None = None,
        texture_size: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """Queue a run; returns the id of its job.

        `options` are any others of the command line by name, e.g. {"method": "csd"}.
        """
        wish = Wish(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            preset=preset,
            teacher=teacher,
            steps=steps,
            guidance_scale=guidance_scale,
            resolution=resolution,
            max_faces=max_faces,
            texture_size=texture_size,
            options={} if options is None else options,
        )
        with _told():
            return self.desk.service.submit(wish.config()).id

    def status(self, job: str) -> dict[str, Any]:
        """How a job stands: state, step of steps, eta_seconds, jobs ahead, reason, finished."""
        with _told():
            found = self._job(job)
            ahead = 0 if found.state in FINISHED else self.desk.service.place_in_queue(found)
            return {**_plain(found), "ahead": ahead}

    def jobs(self, search: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """The latest jobs whose prompt holds `search`."""
        with _told():
            require_text("search", search)
            if type(limit) is not int:
                raise ConfigError(f"limit is {reprlib.repr(limit)}: give a whole number")
            found = self.desk.service.jobs(search=search, limit=max(1, min(limit, 1000)))
            return [_plain(job) for job in found]

    def stop(self, job: str) -> str:
        """End a run and make its mesh from what there is; returns the job's state."""
        with _told():
            return str(self.desk.service.stop(self._job(job).id).state)

    def cancel(self, job: str) -> str:
        """End a run and remove what it made; returns the job's state."""
        with _told():
            return str(self.desk.service.cancel(self._job(job).id).state)

    def continue_run(self, job: str, extra_steps: int = 0) -> str:
        """Go on with a stopped run, or add steps to one that is done; returns the job's state."""
        with _told():
            return str(self.desk.service.continue_(self._job(job).id, extra_steps).state)

    def result(self, job: str) -> dict[str, Any]:
        """The content of result.json; "files" has the names that `download` takes."""
        with _told():
            found = self.desk.service.result(self._job(job))
        if found is None:
            raise gr.Error(f"job {job} has no result yet", print_exception=False)
        return found

    def download(self, job: str, name: str) -> str:
        """A file of a result: mesh.glb, mesh-obj.zip, turntable.mp4, preview.png, result.json."""
        with _told():
            require_text("name", name)
            path = self.desk.copy(self._job(job), name)
        if path is None:
            raise gr.Error(f"job {job} has no file of that name", print_exception=False)
        return str(path)

    def _job(self, job_id: object) -> Job:
        """The job of an id as a caller gave it. Raises UnknownJob, ConfigError for no text."""
        require_text("job", job_id)
        return self.desk.service.get(str(job_id))

    def build(self) -> None:
        """Make the endpoints, inside a Blocks."""
        for function in (
            *(self.submit, self.status, self.jobs, self.stop, self.cancel),
            *(self.continue_run, self.result),
        ):
            gr.api(function, api_name=function.__name__, queue=False)
        with gr.Row(visible=False):
            # A component, so that the client fetches the file.
            job, name = gr.Textbox(label="job"), gr.Textbox(label="name")
            file = gr.File(label="file", interactive=False)
            button = gr.Button()
        button.click(
            self.download,
            [job, name],
            file,
            api_name="download",
            queue=False,
            concurrency_limit=None,
        )


def _plain(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "prompt": job.prompt,
        "seed": job.config["seed"],
        "preset": job.config["preset"],
        "state": str(job.state),
        "finished": job.state in FINISHED,
        "step": job.step,
        "steps": job.steps,
        "eta_seconds": job.eta_seconds,
        "reason": job.reason,
    }


class _told:
    """Turns the errors of this program into ones that the caller is shown."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Sds3dError):
            raise gr.Error(str(error), print_exception=False) from error
