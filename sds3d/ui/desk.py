"""What the tabs and the API have in common: the jobs, their readings, and a request's options."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import reprlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sds3d.config import GenerateConfig, PresetName
from sds3d.config_json import from_dict, to_dict
from sds3d.errors import ConfigError, output_error
from sds3d.jobs.job import Job
from sds3d.jobs.service import JobService
from sds3d.presets import PRESETS, defaults_of_method, generate_config, with_teacher
from sds3d.ui.examples import Example, load_examples
from sds3d.ui.files import OBJ_ZIP, download_name, job_file, obj_zip
from sds3d.ui.options import place_of
from sds3d.ui.processes import Processes
from sds3d.ui.watching import Watching


def no_trouble() -> str | None:
    """Workers of which nothing bad is known."""
    return None


def require_text(name: str, value: object) -> None:
    """Raise ConfigError that names what a caller gave as something else than text."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {reprlib.repr(value)}: give text")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request as the form and the API give it; None leaves an option to the preset.

    `options` are any others of `OptimizeConfig` and `MeshConfig` by name, as plain values.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    preset: str = "balanced"
    teacher: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    resolution: int | None = None
    max_faces: int | None = None
    texture_size: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self) -> GenerateConfig:
        """The options of the run. Raises ConfigError, of a wrong type too, and PromptError.

        What the method and the teacher want of their own is a default here as it is on the command
        line: what was asked for wins over it.
        """
        for name in ("prompt", "negative_prompt", "preset"):
            require_text(name, getattr(self, name))
        if self.teacher is not None:
            require_text("teacher", self.teacher)
        if type(self.seed) is not int:
            raise ConfigError(f"seed is {reprlib.repr(self.seed)}: give a whole number")
        if self.preset not in PRESETS:
            raise ConfigError(
                f"the preset is {self.preset[:80]!r}: give one of {', '.join(PRESETS)}"
            )
        config = generate_config(
            cast(PresetName, self.preset),
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            **({} if self.teacher is None else {"teacher": self.teacher}),
        )
        # All at once, because some options only go together; and with their types looked at.
        document = to_dict(config)
        asked = self._options(config)
        method = asked.get("method")
        own = {}
        if isinstance(method, str) and method != config.optimize.method:
            own = defaults_of_method(method)
        for name, value in (own | asked).items():
            part = document
            for key in place_of(name) or ("optimize",):
                part = part[key]
            part[name] = value
        config = from_dict(document)
        optimize = with_teacher(config.optimize, config.teacher, set(asked))
        return dataclasses.replace(config, optimize=optimize)

    def _options(self, config: GenerateConfig) -> dict[str, Any]:
        named = ("steps", "guidance_scale", "resolution", "max_faces", "texture_size")
        if not isinstance(self.options, Mapping):
            raise ConfigError("options are no object: give one such as {'method': 'csd'}")
        found = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        found |= self.options
        side, sides = found.pop("resolution", None), config.optimize.resolutions
        if side is not None and type(side) is not int:
            raise ConfigError(f"resolution is {reprlib.repr(side)}: give a whole number")
        if side is not None and side != sides[-1]:
            found["resolutions"] = (*(min(earlier, side) for earlier in sides[:-1]), side)
        return found


class Desk:
    """The doors behind every page: jobs, their readings, processes, and copies to be served.

    `copies` is the folder of the files that gradio itself serves; only copies of what was made
    come there. `trouble` says why no worker comes up. `examples` are those that ship with the
    program, unless others are given.
    """

    def __init__(
        self,
        service: JobService,
        *,
        processes: Processes,
        copies: Path,
        trouble: Callable[[], str | None] = no_trouble,
        examples: Sequence[Example] | None = None,
    ) -> None:
        self.service = service
        self.processes = processes
        self.copies = copies
        self.trouble = trouble
        self.watching = Watching(service)
        self.examples = load_examples() if examples is None else tuple(examples)
        self._copying = threading.Lock()

    def copy(self, job: Job, name: str) -> Path | None:
        """A copy of a job's file under a name of its own; None where there is no such file.

        Raises OutputError where there is no room for one.
        """
        try:
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
            return self._copied(target, source, packed)
        except FileNotFoundError:
            # The run was deleted in this moment.
            return None

    def example(self, key: str) -> Example | None:
        """The example that a page calls so."""
        return next((example for example in self.examples if example.key == key), None)

    def copy_example(self, example: Example) -> Path:
        """A copy of an example's mesh. Raises OutputError where there is no room for it."""
        return self._copied(self.copies / "examples" / example.mesh.name, example.mesh, None)

    def _copied(self, target: Path, source: Path | None, packed: bytes | None) -> Path:
        with self._copying:
            if packed is not None or not target.is_file():
                partial = target.with_suffix(".partial")
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if source is not None:
                        shutil.copyfile(source, partial)
                    elif packed is not None:
                        partial.write_bytes(packed)
                    os.replace(partial, target)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    with contextlib.suppress(OSError):
                        partial.unlink()
                    raise output_error(error, self.copies) from error
        return target
