"""The parts of an actor whose loop and export take milliseconds, and what befalls it.

A prompt says it: "deadly" kills its process, "faulty" raises once, "greedy" finds no memory for
more than one view, "finely" none for a fine mesh, "hanging" hangs the first time. In `marks` the
file "nodes" gets a line of the node and the prompt for every item that is begun, "steps" one of
the prompt whenever step `STEP` is made.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sds3d.events import Event, Stage, Step
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig

STEP = 4
STEP_SECONDS = 0.02


def _fakes() -> Any:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("fakes_of_the_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_bench(marks: Path) -> Bench:
    """What a worker needs, with the fakes in it."""
    import ray

    fakes = _fakes()
    loop = fakes.FakeLoop(step_seconds=STEP_SECONDS)

    def first(name: str) -> bool:
        try:
            (marks / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def befall(config: Any) -> None:
        if "deadly" in config.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if "faulty" in config.prompt and first("faulted"):
            raise RuntimeError("a fault")
        if "greedy" in config.prompt and config.optimize.views_per_step > 1:
            raise MemoryError
        if "hanging" in config.prompt and first("hung"):
            time.sleep(600)

    def write_files(optimized: Any, config: Any, folder: Path, on_event: Any) -> Any:
        if "finely" in config.prompt and config.mesh.mesh_resolution > 64:
            on_event(Stage("mesh"))
            raise MemoryError
        return fakes.fake_write_files(optimized, config, folder, on_event)

    def optimize(config: Any, teacher: Any, *, on_event: Any, **how: Any) -> Any:
        with (marks / "nodes").open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {config.prompt}\n")

        def listen(event: Event) -> None:
            on_event(event)
            if isinstance(event, Step) and event.step == STEP:
                with (marks / "steps").open("a") as file:
                    file.write(f"{config.prompt}\n")
                befall(config)

        return loop(config, teacher, on_event=listen, **how)

    parts = fakes.make_parts(loop=optimize, write_files=write_files)
    return Bench(lambda _: parts, previews=False, limits=LimitsConfig(min_free_bytes=0))
