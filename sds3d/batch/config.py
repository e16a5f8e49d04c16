"""The options of a batch. Importing this module imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sds3d.config import DeviceName, PresetName, TeacherName, clean_prompt
from sds3d.errors import ConfigError
from sds3d.require import require_number


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Make the mesh of every prompt in a list; what is already made is skipped.

    A .txt file has one prompt on each line, blank lines and those that begin with # left out. A
    .jsonl file has one object on each line: "prompt", and where they differ from the options
    below "seed", "preset", "steps", "teacher", "negative_prompt". The last line printed is the
    page that shows the results.
    """

    prompts: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPTS")]
    """The list: a .txt or .jsonl file, or - for standard input."""
    out: Path = Path("outputs")
    """Folder in which the runs' own folders are made."""
    workers: int = 1
    """Processes that work side by side; the processors are divided among them."""
    shard: str = "1/1"
    """i/n: every n-th item, beginning with the i-th; n such commands make the whole list."""
    retries: int = 1
    """How often an item is tried again whose process died or hung."""
    timeout: float | None = None
    """Most seconds for one item; it ends with a checkpoint, to go on from with more time."""
    skip_bad: bool = False
    """Leave out lines that cannot be used, instead of stopping before anything starts."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Let a Ray cluster do the work: HOST:PORT of its head, auto for the one that this machine
    belongs to, local for one on this machine alone. --out must be a folder that all its machines
    share, at one path; --workers are those on the whole cluster."""
    gpus_per_worker: float | None = None
    """GPUs of the Ray cluster for each worker: a whole number, or the part of one such as 0.25;
    otherwise the GPUs are divided among the workers."""
    cpus_per_worker: float | None = None
    """Processors of the Ray cluster for each worker; otherwise they are divided among them."""
    preset: PresetName = "balanced"
    """Named set of options."""
    steps: int | None = None
    """Steps of the optimisation, where not those of the preset."""
    seed: int = 0
    """Seed of all randomness."""
    negative_prompt: str = ""
    """What the objects should not be."""
    teacher: TeacherName = ""
    """The diffusion model that judges the renders, where not the preset's: a name or a folder."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""

    def __post_init__(self) -> None:
        require_number("--workers", self.workers, 1, 256)
        require_number("--retries", self.retries, 0, 100)
        if self.timeout is not None:
            require_number("--timeout", self.timeout, 0, open_low=True)
        if self.steps is not None:
            require_number("--steps", self.steps, 1, 1_000_000)
        require_number("--seed", self.seed, 0, 2**63 - 1)
        clean_prompt(self.negative_prompt, "negative prompt")
        self._check_shares()
        self.shard_of()

    def _check_shares(self) -> None:
        for name in ("gpus_per_worker", "cpus_per_worker"):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is None:
                continue
            if self.ray is None:
                raise ConfigError(f"{flag} divides a Ray cluster: give its address with --ray")
            require_number(flag, value, 0)
        if (share := self.gpus_per_worker) is not None:
            if share > 1 and share != int(share):
                raise ConfigError(
                    f"--gpus-per-worker is {share:g}: give a whole number, or a part of one GPU"
                )
            if share > 0 and self.device == "cpu":
                raise ConfigError("--gpus-per-worker has no use with --device cpu: leave one out")

    def shard_of(self) -> tuple[int, int]:
        """The shard as (i, n), i from 1 to n."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--shard is {self.shard[:40]!r}: give i/n with i from 1 to n, such as 2/8"
            )
        return int(match[1]), int(match[2])
