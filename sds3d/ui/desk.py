"""What the tabs and the API have in common: the jobs, their readings, and a request's options."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sds3d.config import GenerateConfig, PresetName
from sds3d.errors import ConfigError
from sds3d.jobs.job import Job
from sds3d.jobs.service import JobService
from sds3d.presets import PRESETS, generate_config
from sds3d.ui.files import OBJ_ZIP, download_name, job_file, obj_zip
from sds3d.ui.processes import Processes
from sds3d.ui.watching import Watching


def no_trouble() -> str | None:
    """Workers of which nothing bad is known."""
    return None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request as the form and the API give it; None leaves an option to the preset."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    preset: str = "balanced"
    teacher: str = "toybox"
    steps: int | None = None
    guidance_scale: float | None = None
    resolution: int | None = None
    max_faces: int | None = None
    texture_size: int | None = None

    def config(self) -> GenerateConfig:
        """The options of the run. Raises ConfigError and PromptError."""
        if self.preset not in PRESETS:
            raise ConfigError(f"the preset is {self.preset!r}: give one of {', '.join(PRESETS)}")
        preset = PRESETS[cast(PresetName, self.preset)]
        optimize, mesh = preset.optimize, preset.mesh
        if self.steps is not None:
            optimize = dataclasses.replace(optimize, steps=self.steps)
        if self.guidance_scale is not None:
            optimize = dataclasses.replace(optimize, guidance_scale=self.guidance_scale)
        if self.resolution is not None and self.resolution != optimize.resolutions[-1]:
            earlier = tuple(min(side, self.resolution) for side in optimize.resolutions[:-1])
            optimize = dataclasses.replace(optimize, resolutions=(*earlier, self.resolution))
        if self.max_faces is not None:
            mesh = dataclasses.replace(mesh, max_faces=self.max_faces)
        if self.texture_size is not None:
            mesh = dataclasses.replace(mesh, texture_size=self.texture_size)
        return generate_config(
            cast(PresetName, self.preset),
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            teacher=self.teacher,
            optimize=optimize,
            mesh=mesh,
        )


class Desk:
    """The doors behind every page: jobs, their readings, processes, and copies to be served.

    `copies` is the folder of the files that gradio itself serves; only copies of what was made
    come there. `trouble` says why no worker comes up.
    """

    def __init__(
        self,
        service: JobService,
        *,
        processes: Processes,
        copies: Path,
        trouble: Callable[[], str | None] = no_trouble,
    ) -> None:
        self.service = service
        self.processes = processes
        self.copies = copies
        self.trouble = trouble
        self.watching = Watching(service)
        self._copying = threading.Lock()

    def copy(self, job: Job, name: str) -> Path | None:
        """A copy of a job's file under a name of its own; None where there is no such file."""
        if name == OBJ_ZIP:
            packed = obj_zip(self.service, job)
            source = None
        else:
            packed = None
            source = job_file(self.service, job, name)
        if source is None and packed is None:
            return None
        stamp = "zip" if source is None else str(source.stat().st_mtime_ns)
        target = self.copies / f"{job.id}-{stamp}" / download_name(job, name)
        with self._copying:
            if packed is not None or not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial")
                if source is not None:
                    shutil.copyfile(source, partial)
                elif packed is not None:
                    partial.write_bytes(packed)
                os.replace(partial, target)
        return target
