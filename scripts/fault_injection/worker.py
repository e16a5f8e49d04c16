"""A worker's process that makes cheap runs, and that some of them kill: once each, at their step.

Run as `python -m fault_injection.worker` with the arguments of sds3d.jobs.worker. FAULT_DEATHS
names a folder; a file <seed> in it holds the step at which the run of that seed kills its worker,
and is removed before it does.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from sds3d.config import GenerateConfig
from sds3d.events import Event, Listener, Step
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.worker import main

from .cheap import make_parts, tiny_optimize, write_field
from .strike import die


def _die_if_due(config: GenerateConfig, step: int) -> None:
    path = Path(os.environ["FAULT_DEATHS"]) / str(config.seed)
    if path.exists() and int(path.read_text()) == step:
        path.unlink()
        die()


def _optimize(config: Any, teacher: Any, *, on_event: Listener, **how: Any) -> Any:
    def listen(event: Event) -> None:
        on_event(event)
        if isinstance(event, Step):
            _die_if_due(config, event.step)

    return tiny_optimize(config, teacher, on_event=listen, **how)


def _write_files(optimized: Any, config: Any, folder: Path, on_event: Listener) -> Any:
    made = write_field(optimized, config, folder, on_event)
    _die_if_due(config, config.optimize.total_steps + 1)
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = make_parts(optimize=_optimize, write_files=_write_files)
    bench = Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))
    sys.exit(main(bench=bench))
