"""A worker's process whose loop and export take milliseconds; a "deadly" prompt kills it.

A "hanging" one hangs at the same step, unless it goes on from a checkpoint.

Run as a script with the arguments of `python -m sds3d.jobs.worker`.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sds3d.events import Event, Step
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.worker import main

DEADLY_STEP = 4


def _fakes() -> Any:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("fakes_of_the_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _make_bench() -> Bench:
    fakes = _fakes()
    loop = fakes.FakeLoop(step_seconds=float(os.environ.get("STEP_SECONDS", "0")))

    def optimize(config: Any, teacher: Any, *, checkpoint: Any, on_event: Any, **how: Any) -> Any:
        is_new = not checkpoint.exists()

        def listen(event: Event) -> None:
            on_event(event)
            if isinstance(event, Step) and event.step == DEADLY_STEP:
                if "deadly" in config.prompt:
                    os.kill(os.getpid(), signal.SIGKILL)
                if "hanging" in config.prompt and is_new:
                    time.sleep(600)

        return loop(config, teacher, checkpoint=checkpoint, on_event=listen, **how)

    parts = fakes.make_parts(loop=optimize)
    return Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))


if __name__ == "__main__":
    sys.exit(main(bench=_make_bench()))
