"""A desk on a folder of the test's own, a worker in this process, and a command of milliseconds."""

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sds3d.jobs.bench import Bench
from sds3d.jobs.job import Job
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService
from sds3d.jobs.worker import Worker
from sds3d.ui.config import AppConfig
from sds3d.ui.desk import Desk, Wish
from sds3d.ui.processes import Processes
from sds3d.ui.serve import Served, serving

HERE = Path(__file__).parent
NO_LIMITS = LimitsConfig(min_free_bytes=0)
WORKER = (sys.executable, str(HERE / "worker_with_pictures.py"))
REAL_WORKER = (sys.executable, str(HERE / "worker_that_shows_more.py"))
COMMAND = (sys.executable, str(HERE / "command_with_fakes.py"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # gradio leaves event loops unclosed, and uses what pandas is about to drop.
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        for ignored in (
            "ignore::ResourceWarning",
            "ignore::pytest.PytestUnraisableExceptionWarning",
            "ignore::pandas.errors.Pandas4Warning",
        ):
            item.add_marker(pytest.mark.filterwarnings(ignored))


@pytest.fixture(scope="session")
def pictures() -> ModuleType:
    """The module of the worker with pictures."""
    spec = importlib.util.spec_from_file_location(
        "worker_with_pictures", HERE / "worker_with_pictures.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium under Playwright; the test is skipped where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    chromium = next(filter(None, found), None)
    if chromium is None:
        pytest.skip("no Chromium found on this machine")
    with sync_api.sync_playwright() as playwright:
        # The viewer needs WebGL, here drawn in software.
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        made = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield made
        made.close()


@dataclass
class Faults:
    """What a page must not do: have an error, or ask for anything of another server.

    While `is_away` is set, the server is not there, and that the page says so is no fault; with
    `was_away`, neither is that a connection was refused, which the browser may tell of later.
    """

    found: list[str] = field(default_factory=list)
    is_away: bool = False
    was_away: bool = False

    def watch(self, page: Any, url: str) -> None:
        """Note the faults of a page of the server at `url`, from now on."""
        page.on("console", self._of_console)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda request: self._of_request(request, url))

    def _note(self, text: str) -> None:
        is_late = self.was_away and "net::ERR_CONNECTION_REFUSED" in text
        if not self.is_away and not is_late:
            self.found.append(text)

    def _of_console(self, message: Any) -> None:
        # Without a graphics card the viewer reports that it must do with WebGL, as an error.
        viewers_own = message.text.startswith("BJS - ") and "WebGPU" in message.text
        if message.type == "error" and not viewers_own:
            self._note(message.text)

    def _of_request(self, request: Any, url: str) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            self.found.append(f"a request to {request.url}")


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Those of the pages that a test has watched; there may be none in the end."""
    noted = Faults()
    yield noted
    assert noted.found == []


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "app.log", COMMAND)
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, processes: Processes) -> Iterator[Desk]:
    copies = tmp_path / "copies"
    copies.mkdir()
    with JobService(tmp_path / "out", limits=NO_LIMITS) as service:
        yield Desk(service, processes=processes, copies=copies)


@pytest.fixture
def submit(desk: Desk) -> Callable[..., Job]:
    """Queue a run of a few steps; the keywords are those of a Wish."""

    def make(prompt: str = "a red mushroom", **wish: Any) -> Job:
        options = {"preset": "fast", "steps": 6, "seed": 1, **wish}
        return desk.service.submit(Wish(prompt=prompt, **options).config())

    return make


@pytest.fixture
def work(desk: Desk, pictures: ModuleType) -> Callable[[], None]:
    """Work off everything that waits, in this process."""

    def run() -> None:
        bench = pictures._make_bench()
        quiet = Bench(bench._make_parts, previews=False, limits=NO_LIMITS)
        Worker(desk.service.store, desk.service.out, name="here", bench=quiet).run(until_idle=True)

    return run


@contextlib.contextmanager
def _serving(out: Path, port: int = 0, *, is_real: bool = False) -> Iterator[Served]:
    worker = REAL_WORKER if is_real else WORKER
    before = os.environ.get("STEP_SECONDS")
    os.environ["STEP_SECONDS"] = "0.01"
    try:
        config = AppConfig(port=port, out=out)
        with serving(config, limits=NO_LIMITS, worker_command=worker, command=COMMAND) as served:
            yield served
    finally:
        if before is None:
            del os.environ["STEP_SECONDS"]
        else:
            os.environ["STEP_SECONDS"] = before


@pytest.fixture
def serve() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """Start a server on a folder, and a port if one is given; its worker takes 10 ms a step.

    With `is_real` it is the program's own, and computes.
    """
    return _serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a worker process that takes 10 ms a step."""
    with _serving(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def finish(server: Served) -> Callable[..., Job]:
    """A finished job of the server; the keywords are those of a Wish."""

    def make(prompt: str = "a red mushroom", **wish: Any) -> Job:
        service = server.desk.service
        options = {"preset": "fast", "steps": 6, "seed": 1, **wish}
        job = service.submit(Wish(prompt=prompt, **options).config())
        deadline = time.monotonic() + 60
        while job.finished is None:
            assert time.monotonic() < deadline, f"the job is still {job.state}"
            time.sleep(0.05)
            job = service.get(job.id)
        return job

    return make
