"""The page of a batch in a real browser, opened from the disk: turned, and looked at in 3D."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sds3d.batch.config import BatchConfig
from sds3d.batch.run import run_batch
from sds3d.batch.viewer import VIEWER, write_viewer

WORKER = (sys.executable, str(Path(__file__).with_name("worker_with_pictures.py")))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a batch of two items and one that cannot be made."""
    folder = tmp_path_factory.mktemp("batch")
    prompts = folder / "list.txt"
    prompts.write_text("a red mushroom\na mushroom <i>again</i>\na hamburger\n")
    config = BatchConfig(prompts=str(prompts), out=folder / "made", steps=4, device="cpu")
    summary = run_batch(config, command=WORKER)
    assert (summary.ok, summary.failed) == (2, 1)
    assert summary.index is not None
    return summary.index


def _pixels(locator: Any) -> np.ndarray:
    shot = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return np.asarray(shot).astype(float)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_meshes_in_3d_from_the_disk_and_asks_for_nothing(
    browser: Any, faults: Any, index: Path, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    faults.watch(page, index.parent.as_uri())
    page.goto(index.as_uri())
    assert page.locator("article").count() == 3
    assert page.locator("article.failed a").count() == 0
    links = page.locator("a.viewer")
    assert links.count() == 2
    links.nth(0).click()
    canvas = page.frame_locator("article:nth-of-type(1) iframe").locator("canvas")
    canvas.wait_for()
    shown = np.zeros((1, 1, 3))
    for _ in range(60):
        shown = _pixels(canvas)
        if shown.std(axis=(0, 1)).max() > 8:
            break
        page.wait_for_timeout(500)
    assert shown.std(axis=(0, 1)).max() > 8
    # The ball is in the middle and red, its corners are free.
    side = min(shown.shape[:2])
    middle = shown[shown.shape[0] // 2, shown.shape[1] // 2]
    assert middle[0] > middle[1:].max() + 10
    assert shown[side // 40, side // 40].min() > 240
    # Another takes its place, and the first has its picture again.
    links.nth(1).click()
    page.frame_locator("article:nth-of-type(2) iframe").locator("canvas").wait_for()
    assert page.locator("iframe").count() == 1
    assert page.locator("article:nth-of-type(1) video").count() == 1
    links.nth(1).click()
    assert page.locator("iframe").count() == 0
    assert page.locator("video").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_viewer_is_made_once_and_again_for_another_mesh(index: Path, tmp_path: Path) -> None:
    mesh = next(index.parent.glob("*/mesh.glb"))
    (tmp_path / "mesh.glb").write_bytes(mesh.read_bytes())
    page = tmp_path / VIEWER
    assert write_viewer(tmp_path)
    made = page.stat().st_mtime_ns
    assert write_viewer(tmp_path)
    assert page.stat().st_mtime_ns == made
    page.write_text("of another mesh")
    newer = page.stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "mesh.glb", ns=(newer, newer))
    assert write_viewer(tmp_path)
    assert "canvas" in page.read_text()


@pytest.mark.parametrize("content", [None, b"", b"no mesh", b"glTF\x02\x00\x00\x00"])
def test_without_a_mesh_there_is_no_viewer(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mesh.glb").write_bytes(content)
    assert not write_viewer(tmp_path)
    assert not (tmp_path / VIEWER).exists()
