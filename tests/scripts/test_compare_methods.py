"""The comparison of the methods: counts, pages, tables and pictures from tiny stand-ins."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import nn

import compare_methods as script
from compare_methods import (
    SIDES,
    TILE,
    ComparisonConfig,
    Made,
    caption,
    described,
    make,
    measure_pace,
    options,
    own_options,
    request,
    sheet,
    spec_of,
    table,
)
from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from draw_gallery import views_of
from method_runs import RECIPES, Passes, is_finished, write_part
from sds3d.config_json import folder_name
from sds3d.device import resolve_device
from sds3d.errors import ConfigError, EmptyField
from sds3d.evaluate.measure import Judge, Measured
from sds3d.evaluate.references import References
from sds3d.generate import Generated, Parts
from sds3d.optimize_config import MethodName
from sds3d.presets import PRESETS
from sds3d.toybox.scenes import SceneSpec

RIGHT = Measured(
    valid=True,
    retrieved=True,
    kind=True,
    color=True,
    silhouette_iou=0.9,
    f_score=0.8,
    azimuth=1.0,
    nearest="a yellow duck",
)
WRONG = dataclasses.replace(
    RIGHT, retrieved=False, silhouette_iou=0.5, azimuth=0.5, nearest="a yellow car"
)
NO_MESH = Measured(azimuth=0.0, problem="the field is empty")


def made(measured: Measured, folder: Path | None = None) -> Made:
    return Made(measured=measured, folder=folder)


def test_samples_are_counted_in_a_network_and_in_its_copies() -> None:
    network = nn.Linear(3, 2)
    network.register_forward_pre_hook(counter := Passes())
    twin = copy.deepcopy(network)
    network(torch.zeros(5, 3))
    twin(torch.zeros(2, 3))
    assert counter.samples == 7


def test_a_part_of_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n"
    )
    write_part(page, "a", r"new \1 & more")
    text = page.read_text()
    assert text == (
        "before\n<!-- a -->\nnew \\1 & more\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n"
    )
    with pytest.raises(ValueError, match="0 parts between <!-- c -->"):
        write_part(page, "c", "lost")
    assert page.read_text() == text


def test_every_method_has_options_that_are_those_of_the_preset_but_for_its_own() -> None:
    base = PRESETS["fast"].optimize
    for method in get_args(MethodName):
        chosen = options("fast", method)
        assert chosen.method == method
        changed = {
            field.name
            for field in dataclasses.fields(chosen)
            if getattr(chosen, field.name) != getattr(base, field.name)
        }
        assert changed - {"method"} == set(RECIPES.get(method, {}))
        for name, value in RECIPES.get(method, {}).items():
            assert f"`--{name.replace('_', '-')} {value}`" in own_options(method)


def test_the_page_names_the_pair_that_was_held_out() -> None:
    config = ComparisonConfig()
    text = described(config, "0123456789abcdef", {})
    assert "(the teacher never saw a pink teapot)" in text
    assert "timed" not in text
    pace = {"steps": 30, "threads": 2, "methods": {"sds": {"step_ms": 51.2, "passes": 2.0}}}
    assert "30 of each method in turns" in described(config, "0123456789abcdef", pace)
    assert request(config, "pink teapot", options("fast", "csd")).prompt == "a pink teapot"


class Missing(Judge):
    """A judge that needs no exact renders for a run without a mesh."""

    def tells_azimuth(self, shape: object) -> bool:
        return True


def test_a_run_without_a_mesh_is_a_miss_and_a_bad_request_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ComparisonConfig(work=tmp_path)
    given = request(config, "yellow duck", options("fast", "sds"))
    judge = Missing(References(None), seed=0)
    parts = Parts(load_teacher=_never, optimize=_never, write_files=_never)

    def empty(*_: Any, **__: Any) -> Generated:
        raise EmptyField("the field is empty")

    monkeypatch.setattr(script, "generate", empty)
    found = make(given, spec_of("yellow duck"), parts, judge)
    assert found == Made(measured=NO_MESH, folder=None)
    assert caption(found.measured) == "no mesh"

    def refused(*_: Any, **__: Any) -> Generated:
        raise ConfigError("--steps is 0")

    monkeypatch.setattr(script, "generate", refused)
    with pytest.raises(ConfigError):
        make(given, spec_of("yellow duck"), parts, judge)

    def done(*_: Any, **__: Any) -> Generated:
        return Generated(folder=tmp_path, result={})

    monkeypatch.setattr(script, "generate", done)
    monkeypatch.setattr(judge, "measure", lambda spec, path: (spec, path))
    found = make(given, spec_of("yellow duck"), parts, judge)
    assert found.measured == (SceneSpec(kind="duck", color="yellow"), tmp_path / "mesh.glb")
    assert found.folder == tmp_path


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is computed here")


def test_the_table_has_means_of_what_applies_and_ratios_to_sds() -> None:
    symmetric = dataclasses.replace(RIGHT, azimuth=None)
    rows: dict[MethodName, list[Made | None]] = {
        "sds": [made(RIGHT), None, made(symmetric)],
        "csd": [None, None, None],
        "ism": [made(WRONG), made(NO_MESH)],
    }
    pace = {
        "methods": {
            "sds": {"step_ms": 50.0, "passes": 2.0},
            "ism": {"step_ms": 125.0, "passes": 8.0},
        }
    }
    lines = table(rows, pace, 400).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| `sds` |  | 2 of 2 | 0.90 | 0.80 | 100% | 2 | 1.0 | 20 |"
    assert lines[3] == "| `ism` | `--ode-steps 4` | 0 of 2 | 0.25 | 0.40 | 25% | 8 | 2.5 | 50 |"
    bare = table(rows, {}, 400).splitlines()
    assert bare[3].endswith("| 25% | - | - | - |")


def test_a_caption_says_what_a_mesh_is_taken_for_where_it_is_wrong() -> None:
    assert caption(RIGHT) == "IoU 0.90, azimuth 100%"
    assert caption(WRONG) == "like a yellow car, IoU 0.50, azimuth 50%"


def test_a_run_is_finished_when_its_result_is_there(tmp_path: Path) -> None:
    given = request(ComparisonConfig(work=tmp_path), "red car", options("fast", "sds"))
    assert not is_finished(given, "0" * 64)
    folder = tmp_path / folder_name(
        dataclasses.replace(given, device=resolve_device("auto")), "0" * 64
    )
    folder.mkdir()
    assert not is_finished(given, "0" * 64)
    (folder / "result.json").write_text("{}")
    assert is_finished(given, "0" * 64)
    assert not is_finished(given, "1" * 64)


def contact_sheet(folder: Path) -> None:
    """Eight squares in 4 x 2 whose brightness is 20 times their number."""
    side = 32
    picture = Image.new("RGB", (4 * side + 3 * 4, 2 * side + 4), "white")
    for view in range(8):
        square = Image.new("RGB", (side, side), (20 * view,) * 3)
        picture.paste(square, ((view % 4) * (side + 4), (view // 4) * (side + 4)))
    folder.mkdir()
    picture.save(folder / "preview.png")


def test_the_picture_shows_four_sides_of_each_mesh_in_order(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "run")
    tiles = views_of(tmp_path / "run", SIDES, 16)
    assert [tile.size for tile in tiles] == [(16, 16)] * 4
    assert [tile.getpixel((8, 8)) for tile in tiles] == [(20 * side,) * 3 for side in SIDES]

    picture = sheet(
        {"sds": [made(NO_MESH), made(RIGHT, tmp_path / "run"), None]},
        ("red car", "yellow duck", "blue chair"),
    )
    second = script.LEFT + len(SIDES) * TILE + script.GAP
    for i, side in enumerate(SIDES):
        middle = (i * TILE + TILE // 2, script.TOP + TILE // 2)
        assert picture.getpixel((second + middle[0], middle[1])) == (20 * side,) * 3
        assert picture.getpixel((script.LEFT + middle[0], middle[1])) == (255, 255, 255)


class TinyTeacher:
    """Says that everything is grey; its one module sees each sample that it is asked about."""

    image_size = 8
    schedule = FlowSchedule()
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.module = nn.Identity()

    def __call__(
        self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning | None = None
    ) -> Prediction:
        x0 = torch.zeros_like(self.module(x_t))
        return Prediction.from_x0(x0, x_t, t, self.schedule)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        count = 1 if isinstance(prompts, str) else len(prompts)
        text = torch.ones(count, 1, 4)
        return Conditioning(text=text, uncond=Conditioning(text=0 * text))


def test_passes_are_counted_for_each_view_of_a_step(tmp_path: Path) -> None:
    config = ComparisonConfig(
        methods=("sds", "sjc", "hifa"), work=tmp_path, device="cpu", pace_steps=1
    )
    teacher = TinyTeacher()
    teacher.module.register_forward_pre_hook(counter := Passes())
    found = measure_pace(config, teacher, counter)  # pyright: ignore[reportArgumentType]
    assert {name: pace.passes for name, pace in found.items()} == {
        "sds": 2.0,
        "sjc": 8.0,
        "hifa": 8.0,
    }
    assert all(pace.step_ms > 0 for pace in found.values())
    (tmp_path / "pace.json").write_text(json.dumps({"methods": {}}))
    assert script.read_pace(tmp_path) == {"methods": {}}
    assert script.read_pace(tmp_path / "none") == {}
