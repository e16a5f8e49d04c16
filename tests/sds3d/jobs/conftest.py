"""A service on a folder of the test's own, and a worker in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.config import GenerateConfig
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService
from sds3d.jobs.worker import Worker
from sds3d.optimize_config import OptimizeConfig

STEPS = 10


@pytest.fixture
def make_config() -> Callable[..., GenerateConfig]:
    """Options of a run of a few steps; the keywords are fields, or `steps`."""

    def make(prompt: str = "a red mushroom", *, steps: int = STEPS, **fields: Any) -> Any:
        options = OptimizeConfig(steps=steps)
        return GenerateConfig(prompt=prompt, device="cpu", **{"optimize": options, **fields})

    return make


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(tmp_path / "out", limits=LimitsConfig(min_free_bytes=0)) as made:
        yield made


@pytest.fixture
def make_worker(fakes: SimpleNamespace, service: JobService) -> Callable[..., Worker]:
    """A worker in this process; the keywords are those of the pipeline's parts, and `name`."""

    def make(name: str = "worker", **parts: Any) -> Worker:
        made = fakes.make_parts(**parts)
        bench = Bench(lambda _: made, previews=False, limits=LimitsConfig(min_free_bytes=0))
        return Worker(service.store, service.out, name=name, bench=bench)

    return make


@pytest.fixture
def worker_command() -> Path:
    """The script of a worker's process with fakes."""
    return Path(__file__).with_name("worker_with_fakes.py")
