"""What result.json says of a run with a teacher from a folder makes the same files again."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sds3d.config import GenerateConfig, MeshConfig
from sds3d.events import Event, Warning
from sds3d.generate import generate
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.reproduce import ReproduceConfig, reproduce
from sds3d.user_config import config_path

OPTIONS = OptimizeConfig(
    steps=2,
    resolutions=(8,),
    resolution_milestones=(),
    step_size=0.2,
    occupancy_resolution=8,
    view_prompts="interpolated",
    field=FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    ),
)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "a plain one": ("sd-eps", {"target": "image", "perp_neg": True}),
    "latents": ("sd-eps", {"latent": True, "rgb_refinement": 0.5, "view_prompts": "discrete"}),
    "two particles": ("sd-v", {"target": "image", "method": "vsd", "particles": 2}),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    config_path().parent.mkdir(parents=True)
    config_path().write_text("[teacher]\nimage_size = 16\n")
    return tmp_path


@pytest.fixture
def config(tiny_folder: Callable[[str], Path], home: Path) -> Callable[[str], GenerateConfig]:
    def make(run: str) -> GenerateConfig:
        teacher, changed = RUNS[run]
        return GenerateConfig(
            prompt="a mug",
            negative_prompt="blurry",
            teacher=str(tiny_folder(teacher)),
            seed=7,
            device="cpu",
            out=home / "out",
            optimize=replace(OPTIONS, **changed),
            mesh=MeshConfig(formats=("obj",), mesh_resolution=16, max_faces=300, texture_size=0),
        )

    return make


def again(result: Path, out: Path) -> tuple[dict[str, str], list[str]]:
    """The hashes of the files that `reproduce` makes, and its warnings."""
    heard: list[Event] = []
    made = reproduce(ReproduceConfig(result=result, out=out), on_event=heard.append)
    return made.result["files"], [event.text for event in heard if isinstance(event, Warning)]


@pytest.mark.parametrize("run", RUNS)
def test_a_recorded_run_is_made_again_to_the_bit(
    run: str, config: Callable[[str], GenerateConfig], home: Path
) -> None:
    chosen = config(run)
    first = generate(chosen)
    recorded = home / "elsewhere" / "result.json"
    recorded.parent.mkdir()
    os.rename(first.folder / "result.json", recorded)  # nothing else of the run is read
    files, warnings = again(recorded, home / "again")
    assert not warnings
    wanted: dict[str, str] = first.result["files"]
    assert {k: v for k, v in files.items() if k != "config.json"} == {
        k: v for k, v in wanted.items() if k != "config.json"
    }
    assert len(wanted) > 2


def test_another_seed_or_size_of_the_teachers_images_is_seen_and_named(
    config: Callable[[str], GenerateConfig], home: Path
) -> None:
    """The latter are settings of the user's file, no options of the run: it says what they were."""
    first = generate(config("a plain one"))
    config_path().write_text("[teacher]\nimage_size = 32\n")
    _, warnings = again(first.folder / "result.json", home / "again")
    (cause,) = [text for text in warnings if text.startswith("teacher was")]
    assert "'image_size': 16" in cause.partition(" and is ")[0]
    assert "'image_size': 32" in cause.partition(" and is ")[2]
    config_path().write_text("[teacher]\nimage_size = 16\n")
    document = json.loads((first.folder / "result.json").read_text())
    document["config"]["seed"] = 8
    recorded = home / "result.json"
    recorded.write_text(json.dumps(document))
    _, warnings = again(recorded, home / "other")
    assert "image.png differs from the recorded one" in warnings
    assert not [text for text in warnings if text.startswith("teacher was")]
