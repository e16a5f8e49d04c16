"""The page in a real browser: from a prompt to a mesh on the canvas, and no request leaves."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
import trimesh
from PIL import Image

from sds3d.jobs.job import Job
from sds3d.jobs.states import State
from sds3d.ui.serve import Served

PATIENCE_MS = 60_000


@pytest.fixture
def open_page(browser: Any, server: Served, faults: Any) -> Iterator[Callable[..., Any]]:
    """Open a tab; in the end no tab may have had an error or asked for anything elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)

    def make(query: str = "", width: int = 1280, *, at: Served = server) -> Any:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        faults.watch(page, at.url)
        page.goto(at.url + query)
        page.wait_for_selector("#generate")
        return page

    yield make
    context.close()


def _picture(page: Any, selector: str) -> np.ndarray:
    shot = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def _fill(page: Any, field: Any, text: str) -> None:
    """Fill a field of a tab or an accordion, which is made anew when that opens, and forgets."""
    _fill_all(page, [(field, text)])


def _fill_all(page: Any, fields: list[tuple[Any, str]]) -> None:
    for field, _ in fields:
        field.wait_for()
    for _ in range(20):
        page.wait_for_timeout(300)
        forgotten = [(field, text) for field, text in fields if field.input_value() != text]
        if not forgotten:
            return
        for field, text in forgotten:
            field.fill(text)
            field.press("Tab")
    raise AssertionError(f"fields forget what is typed: {[text for _, text in fields]}")


def _ask_for(page: Any, prompt: str, steps: int, *, is_open: bool = False) -> str:
    """Generate; `is_open` says that the options are shown already. Returns the job's id."""
    page.fill("#prompt textarea", prompt)
    if not is_open:
        page.click("#advanced > button")
    _fill(page, page.locator("#option-steps input"), str(steps))
    page.click("#generate")
    page.wait_for_url(re.compile(r"\?job="))
    return str(page.url).split("job=")[1]


def test_a_prompt_becomes_a_mesh_on_the_canvas_and_a_file(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page()
    _ask_for(page, "a red mushroom <img src=x onerror=alert(1)>", 600)
    page.wait_for_selector("#status .running progress")
    first = page.wait_for_selector("img.growing").get_attribute("src")
    page.wait_for_function("(src) => document.querySelector('img.growing')?.src.endsWith(src) "
                           "=== false", arg=first)  # fmt: skip
    page.wait_for_selector("#status .done")
    assert "<img src=x" in page.inner_text("#status h3")
    page.wait_for_selector("#model canvas")
    # The viewer draws in software here, and says nothing of when it is through.
    red = np.zeros(1)
    for _ in range(120):
        page.wait_for_timeout(500)
        shown = _picture(page, "#model canvas")
        red = (shown[..., 0] > shown[..., 1] + 60) & (shown[..., 0] > shown[..., 2] + 60)
        if red.mean() > 0.02:
            break
    assert 0.02 < red.mean() < 0.9
    with page.expect_download() as download:
        page.click("a.download:has-text('GLB')")
    path = tmp_path / "mesh.glb"
    download.value.save_as(path)
    # A reader that shares no code with the writer; Any, for it declares every index as optional.
    gltf: Any = pygltflib.GLTF2().load_binary(str(path))
    (mesh,) = gltf.meshes
    (primitive,) = mesh.primitives
    positions = gltf.accessors[primitive.attributes.POSITION]
    assert gltf.accessors[primitive.indices].count == 3 * 1280
    assert positions.count > 0
    assert np.allclose(positions.max, 0.5, atol=0.01)
    blob = gltf.binary_blob()
    assert len(blob) >= sum(view.byteLength for view in gltf.bufferViews)


def test_the_real_pipeline_makes_a_mesh_that_is_seen_and_can_be_taken(
    open_page: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path
) -> None:
    """The embedded teacher, the loop, the mesh: of the smallest sizes, and nothing made up."""
    sizes = {"resolution": 32, "mesh-resolution": 32, "texture-size": 64, "max-faces": 2000}
    with serve(tmp_path, is_real=True) as served:
        page = open_page(at=served)
        page.click("#advanced > button")
        page.click("#advanced button:has-text('Views')")
        page.click("#advanced button:has-text('Mesh')")
        fields = {page.locator(f"#option-{name} input"): str(n) for name, n in sizes.items()}
        _fill_all(page, list(fields.items()))
        job_id = _ask_for(page, "a red mushroom", 60, is_open=True)
        seen: list[str] = []
        while len(seen) < 2 and not page.locator("#status .done").count():
            picture = page.locator("img.growing")
            source = picture.get_attribute("src") if picture.count() else None
            if source and source not in seen:
                seen.append(source)
            page.wait_for_timeout(100)
        assert len(seen) == 2
        page.wait_for_selector("#status .done")
        page.wait_for_selector("#model canvas")
        spread = _spread_on_canvas(page, "#model canvas")
        assert spread > 8
        with page.expect_download() as download:
            page.click("a.download:has-text('GLB')")
        path = tmp_path / "taken.glb"
        download.value.save_as(path)
        result = served.desk.service.result(served.desk.service.get(job_id))
        page.close()
    assert result is not None
    assert result["steps"] == 60
    assert result["teacher"]["name"] == "toybox"
    mesh = trimesh.load_scene(path).to_mesh()
    assert len(mesh.faces) == result["mesh"]["faces"] > 500
    assert np.isfinite(mesh.vertices).all()
    assert np.isclose(mesh.extents.max(), 1.0, atol=1e-3)


def _spread_on_canvas(page: Any, selector: str) -> float:
    """Standard deviation of the pixels, once they are not all the same."""
    spread = 0.0
    for _ in range(60):
        page.wait_for_timeout(500)
        spread = float(_picture(page, selector).std(axis=(0, 1)).max())
        if spread > 8:
            break
    return spread


def test_a_stopped_run_has_a_mesh_and_every_tab_and_reload_finds_it(
    open_page: Callable[..., Any], server: Served, tmp_path: Path
) -> None:
    page = open_page()
    job_id = _ask_for(page, "a blue mushroom", 4000)
    page.wait_for_selector("#status .running progress")
    other = open_page(f"?job={job_id}")
    other.wait_for_selector("#status .running progress")
    assert other.input_value("#prompt textarea") == "a blue mushroom"
    page.click("#stop")
    page.wait_for_selector("#status .stopped")
    other.wait_for_selector("#status .stopped")
    page.reload()
    page.wait_for_selector("#status .stopped")
    with page.expect_download() as download:
        page.click("a.download:has-text('GLB')")
    path = tmp_path / "stopped.glb"
    download.value.save_as(path)
    mesh = trimesh.load_scene(path).to_mesh()
    assert len(mesh.faces) > 0
    assert np.isfinite(mesh.vertices).all()
    job = server.desk.service.get(job_id)
    assert job.state is State.STOPPED
    assert 0 < job.step < 4000


def test_a_page_finds_its_job_after_the_server_was_restarted(
    browser: Any, serve: Callable[..., Any], faults: Any, tmp_path: Path
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    with serve(tmp_path) as first:
        address = first.url
        faults.watch(page, address)
        page.goto(address)
        job_id = _ask_for(page, "a blue mushroom", 400)
        page.wait_for_selector("img.growing")
        at_most = first.desk.service.get(job_id).step
        faults.is_away = faults.was_away = True
    with serve(tmp_path, int(address.rstrip("/").rsplit(":", 1)[1])) as second:
        page.reload()
        faults.is_away = False
        page.wait_for_selector("#status .done")
        assert page.input_value("#prompt textarea") == "a blue mushroom"
        page.wait_for_selector("a.download:has-text('GLB')")
        assert second.desk.service.get(job_id).step == 400 > at_most
    context.close()


def test_what_a_method_wants_is_filled_in_and_said(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click("#advanced > button")
    rescale = page.locator("#option-guidance-rescale input")
    method = page.locator("#option-method input")
    before = rescale.input_value()
    for name, value, said in (("reconstruction", "0.5", True), ("sds", before, False)):
        method.click()
        page.click(f"[role=option]:has-text('{name}')")
        page.wait_for_function(
            "([value]) => document.querySelector('#option-guidance-rescale input').value === value",
            arg=[value],
        )
        assert ("Guidance rescale 0.5" in page.inner_text("#wants")) is said
    assert before != "0.5"


def test_seeds_race_and_the_pick_goes_on(open_page: Callable[..., Any], server: Served) -> None:
    page = open_page()
    page.fill("#prompt textarea", "a racing mushroom")
    page.fill("#seed input", "1")
    page.click("#seed-race > button")
    page.click("#race")
    page.wait_for_url(re.compile(r"\?race="))
    page.wait_for_selector("#race-pick input:checked")
    page.reload()
    page.wait_for_selector("#race-pick input:checked")
    assert page.locator("#race-view article").count() == 3
    assert "seed 2" in page.inner_text("#race-view article.best")
    page.click("#race-continue")
    page.wait_for_url(re.compile(r"\?job="))
    page.wait_for_selector("#status .done")
    assert page.is_hidden("#race-view")
    assert page.input_value("#seed input") == "2"
    jobs = server.desk.service.jobs(search="racing")
    assert sorted(str(job.state) for job in jobs) == ["done", "stopped", "stopped"]


def test_the_gallery_finds_repeats_and_deletes(
    open_page: Callable[..., Any], server: Served, finish: Callable[..., Job]
) -> None:
    job = finish("a very purple mushroom")
    page = open_page()
    page.click("button[role=tab]:has-text('Gallery')")
    page.wait_for_selector(".gallery article")
    _fill(page, page.get_by_label("Search"), "very PURPLE")
    page.wait_for_function("() => document.querySelectorAll('.gallery article').length === 1")
    page.click("button[data-action=again]")
    page.wait_for_selector("#status .done")
    (again,) = (j for j in server.desk.service.jobs(search="very purple") if j.id != job.id)
    assert again.config["seed"] != job.config["seed"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("button[role=tab]:has-text('Gallery')")
    page.click(f"article[data-job='{job.id}'] button[data-action=delete]")
    page.wait_for_selector(f"article[data-job='{job.id}']", state="detached")
    assert job.id not in [found.id for found in server.desk.service.jobs()]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    open_page: Callable[..., Any], finish: Callable[..., Job], width: int
) -> None:
    page = open_page(f"?job={finish().id}", width)
    page.wait_for_selector("#status .done")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
