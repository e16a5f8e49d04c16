"""Take the pictures of the app: light, dark, and as wide as a phone.

    python scripts/screenshots.py [--prompt "a red mushroom"] [--preset fast] [--fake] [--all]
        [--runs outputs/screenshots] [--out docs]

Starts the app on the folder --runs, makes the prompt there unless that is done already, and takes
app.png of its page, the README's picture, with Playwright and the system's Chromium. With --all it
takes all that are to be looked at before a release, in light and dark, on a laptop's and a phone's
screen: the Distillation tab, for which two students are trained, and the Gallery too; each whole,
however far it would have to be scrolled. With --fake a worker of the tests takes the place of the
real one: it takes seconds.
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
TRAINING_MS = 600_000
MORE_PROMPTS = ("a blue mushroom", "a mushroom beside a tall green mushroom", "a yellow mushroom")
"""What lies in the gallery beside the prompt, with the worker of the tests."""
STUDENT_STEPS = 300

LAPTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 980}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
}
LIGHT, DARK = {"color_scheme": "light"}, {"color_scheme": "dark"}


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture: its name, the tab that it shows, and the browser's window."""

    name: str
    tab: str
    how: dict[str, Any]
    is_shown: bool = False
    """Whether the README shows it."""


TEXT, DISTILLATION, GALLERY = "Text to 3D", "Distillation", "Gallery"
SHOTS = (
    Shot(name="app", tab=TEXT, how=LAPTOP | LIGHT, is_shown=True),
    Shot(name="app-dark", tab=TEXT, how=LAPTOP | DARK),
    Shot(name="app-phone", tab=TEXT, how=PHONE | LIGHT),
    Shot(name="app-phone-dark", tab=TEXT, how=PHONE | DARK),
    Shot(name="distillation", tab=DISTILLATION, how=LAPTOP | LIGHT),
    Shot(name="distillation-dark", tab=DISTILLATION, how=LAPTOP | DARK),
    Shot(name="distillation-phone-dark", tab=DISTILLATION, how=PHONE | DARK),
    Shot(name="gallery", tab=GALLERY, how=LAPTOP | LIGHT),
    Shot(name="gallery-phone-dark", tab=GALLERY, how=PHONE | DARK),
)


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
    all: bool = False
    """Take those that the README does not show too."""
    runs: Path = Path("outputs/screenshots")
    """Where the app keeps its runs."""
    out: Path = Path("docs")
    """Where the pictures go."""
    minutes: float = 20.0
    """How long the run may take."""


def finished_job(served: Served, config: ScreenshotsConfig, prompt: str) -> str:
    """The id of the job, once it is done."""
    service = served.desk.service
    wish = Wish(prompt=prompt, seed=config.seed, preset=config.preset)
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


def take(browser: Browser, address: str, shot: Shot, path: Path) -> None:
    """One picture of a tab of the page of a finished job."""
    context = browser.new_context(**shot.how)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#status .done")
    if shot.tab == TEXT:
        page.wait_for_selector("#model canvas")
        _wait_for_the_mesh(page)
        if shot.how.get("is_mobile"):
            # The form is above what it made: of the page, the part with the object.
            page.evaluate("document.querySelector('#status').scrollIntoView()")
        else:
            page.evaluate("scrollTo(0, 0)")
    else:
        page.click(f"button[role=tab]:has-text('{shot.tab}')")
        {DISTILLATION: _train_students, GALLERY: _show_gallery}[shot.tab](page)
    page.screenshot(path=path, full_page=shot.tab != TEXT)
    context.close()


def _train_students(page: Page) -> None:
    """The two that are chosen at first; those that are there already come at once."""
    page.wait_for_selector(".taxonomy .method")
    page.get_by_label("Training steps", exact=True).fill(str(STUDENT_STEPS))
    page.click("#train")
    page.wait_for_selector("#students .done >> nth=1", timeout=TRAINING_MS)
    page.wait_for_selector("#students table.statistics td")
    page.wait_for_timeout(500)


def _show_gallery(page: Page) -> None:
    page.wait_for_selector("#gallery article img")
    # Those below the window come when they are scrolled to, and the picture is of the whole page.
    page.evaluate("document.querySelectorAll('#gallery img').forEach((i) => (i.loading = 'eager'))")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#gallery img')].every((img) => img.complete)"
    )


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
        if config.all and config.fake:
            for prompt in MORE_PROMPTS:
                finished_job(served, config, prompt)
        address = f"{served.url}?job={finished_job(served, config, config.prompt)}"
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for shot in SHOTS:
            if config.all or shot.is_shown:
                path = config.out / f"{shot.name}.png"
                take(browser, address, shot, path)
                print(path)
        browser.close()


if __name__ == "__main__":
    main()
