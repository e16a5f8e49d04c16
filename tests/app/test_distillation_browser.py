"""A student that learns before one's eyes: the tab in a real browser, the training a real one."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sds3d.jobs.limits import LimitsConfig
from sds3d.ui.config import AppConfig
from sds3d.ui.serve import Served, serving

PATIENCE_MS = 60_000
NO_WORKER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose students are trained by the program itself, and which makes no meshes."""
    config = AppConfig(port=0, out=tmp_path_factory.mktemp("real") / "out")
    limits = LimitsConfig(min_free_bytes=0)
    with serving(config, limits=limits, worker_command=NO_WORKER) as served:
        yield served


@pytest.fixture
def page(browser: Any, real: Served, faults: Any) -> Iterator[Any]:
    """The distillation tab; in the end it may have had no error and asked for nothing elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    faults.watch(page, real.url)
    page.goto(real.url)
    page.click("button[role=tab]:has-text('Distillation')")
    page.wait_for_selector(".taxonomy .method")
    yield page
    context.close()


def _picture(page: Any, selector: str) -> np.ndarray:
    """What is drawn of the picture, scrolled to."""
    shot = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def _choose_alone(page: Any, name: str) -> None:
    for method in page.locator(".method[aria-pressed=true]").evaluate_all(
        "(buttons) => buttons.map((button) => button.dataset.method)"
    ):
        page.click(f"[data-method={method}]")
        page.wait_for_selector(f"[data-method={method}][aria-pressed=false]")
    page.click(f"[data-method={name}]")
    page.wait_for_selector(f"[data-method={name}][aria-pressed=true]")
    page.wait_for_selector(".cards article >> nth=0")


def test_a_student_is_seen_to_learn_stopped_and_compared(page: Any) -> None:
    _choose_alone(page, "meanflow")
    assert "arXiv" in page.inner_text(".cards article")
    assert page.locator(".cards a[href='https://arxiv.org/abs/2505.13447']").count() == 1
    # More steps than anyone waits for: what is seen is seen in training.
    page.get_by_label("Training steps", exact=True).fill("20000")
    page.click("#train")
    page.wait_for_selector("#students .training img.live")
    early = _picture(page, "#students img.live")
    page.wait_for_function(
        "() => Number(document.querySelector('#students img.live')?.dataset.step) > 50"
    )
    late = _picture(page, "#students img.live")
    assert early.shape == late.shape
    assert (np.abs(early - late).max(-1) > 40).mean() > 0.01
    page.wait_for_selector("#students .training svg polyline")
    assert page.locator("#students .teacher img").count() == 2
    page.click("#stop-training")
    page.wait_for_selector("#students .failed .notice:has-text('stopped')")

    # Another on the line, which the words of the catalogue refuse first.
    page.click("label:has-text('Two modes on a line')")
    page.wait_for_selector(".method.unfit[data-method=guidance]")
    _choose_alone(page, "guidance")
    page.click("#train")
    page.wait_for_selector(
        "#distill-notice .error:has-text('needs class labels, and the ground mixture-1d has none')"
    )
    _choose_alone(page, "kd")
    page.get_by_label("Training steps", exact=True).fill("20")
    page.click("#train")
    page.wait_for_selector("#students .done")
    page.wait_for_selector("#students table.statistics td")
    rows = page.locator("#students tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows][:2] == [
        "Teacher, 64 evaluations by DDIM",
        "Teacher, 1 evaluation by DDIM",
    ]
    assert len(rows) == 3
    shown = page.locator("#students img")
    for k in range(shown.count()):
        assert shown.nth(k).evaluate("(img) => img.complete && img.naturalWidth > 0")


def test_the_tab_is_no_wider_than_the_screen(page: Any) -> None:
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
