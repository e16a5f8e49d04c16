"""Take the pictures of the app: light, dark, and as wide as a phone.

    python scripts/screenshots.py [--prompt "a red mushroom"] [--preset fast] [--fake]
        [--runs outputs/screenshots] [--out docs]

Starts the app on the folder --runs, makes the prompt there unless that is done already, and takes
app.png, app-dark.png and app-phone.png of its page with Playwright and the system's Chromium.
With --fake a worker of the tests takes the place of the real one: it takes seconds.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from PIL import Image, ImageStat

from sds3d.config import PresetName
from sds3d.jobs.states import FINISHED, State
from sds3d.jobs.supervisor import WORKER_COMMAND
from sds3d.ui.config import AppConfig
from sds3d.ui.desk import Wish
from sds3d.ui.serve import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FAKE_WORKER = Path(__file__).parents[1] / "tests" / "app" / "worker_with_pictures.py"
PATIENCE_MS = 60_000
SHOTS: dict[str, dict[str, Any]] = {
    "app": {"viewport": {"width": 1280, "height": 980}, "color_scheme": "light"},
    "app-dark": {"viewport": {"width": 1280, "height": 980}, "color_scheme": "dark"},
    "app-phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "color_scheme": "light",
    },
}


@dataclass(frozen=True, kw_only=True)
class ScreenshotsConfig:
    """Take the pictures of the app."""

    prompt: str = "a red mushroom"
    """What is shown."""
    seed: int = 1
    """Seed of its run."""
    preset: PresetName = "fast"
    """Preset of its run."""
    fake: bool = False
    """Show a run of the tests' worker, which computes nothing."""
    runs: Path = Path("outputs/screenshots")
    """Where the app keeps its runs."""
    out: Path = Path("docs")
    """Where the pictures go."""
    minutes: float = 20.0
    """How long the run may take."""


def finished_job(served: Served, config: ScreenshotsConfig) -> str:
    """The id of the job, once it is done."""
    service = served.desk.service
    wish = Wish(prompt=config.prompt, seed=config.seed, preset=config.preset)
    job = service.submit(wish.config())
    deadline = time.monotonic() + 60 * config.minutes
    while job.state not in FINISHED:
        if time.monotonic() > deadline:
            sys.exit(f"the run is at step {job.step} of {job.steps}: give more --minutes")
        time.sleep(0.5)
        job = service.get(job.id)
    if job.state is not State.DONE:
        sys.exit(f"the run is {job.state}: {job.reason}")
    return job.id


def take(browser: Browser, address: str, how: dict[str, Any], path: Path) -> None:
    """One picture of the page of a finished job."""
    context = browser.new_context(**how)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#status .done")
    page.wait_for_selector("#model canvas")
    _wait_for_the_mesh(page)
    if how.get("is_mobile"):
        # The form is above what it made: of the page, the part with the object.
        page.locator("#status").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#status').scrollIntoView()")
    else:
        page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=path)
    context.close()


def _wait_for_the_mesh(page: Page) -> None:
    """The viewer says nothing of when it is through: until its canvas is no longer even."""
    for _ in range(60):
        page.wait_for_timeout(1000)
        picture = Image.open(io.BytesIO(page.locator("#model canvas").screenshot()))
        if max(ImageStat.Stat(picture.convert("RGB")).stddev) > 8:
            return
    sys.exit("the viewer shows no mesh")


def main() -> None:
    config = tyro.cli(ScreenshotsConfig)
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        sys.exit("no Chromium found: install one (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    config.out.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, str(FAKE_WORKER)) if config.fake else WORKER_COMMAND
    app = AppConfig(port=0, out=config.runs)
    with serving(app, worker_command=command) as served, sync_playwright() as playwright:
        address = f"{served.url}?job={finished_job(served, config)}"
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for name, how in SHOTS.items():
            path = config.out / f"{name}.png"
            take(browser, address, how, path)
            print(path)
        browser.close()


if __name__ == "__main__":
    main()
