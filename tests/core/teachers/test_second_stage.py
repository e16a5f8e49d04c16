"""Magic3D's two stages, end to end: a field by one teacher, its mesh by a teacher of latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from core.teachers.folder import read_folder
from sds3d.config import GenerateConfig, MeshConfig
from sds3d.events import Event, Stage, Step, Warning
from sds3d.generate import generate
from sds3d.optimize_config import FieldOptions, OptimizeConfig, RefineOptions
from sds3d.reproduce import ReproduceConfig, reproduce

SMALL = FieldOptions(
    n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sds3d").mkdir()
    (tmp_path / "sds3d" / "config.toml").write_text("[teacher]\nimage_size = 16\n")
    return tmp_path


def test_a_latent_teacher_refines_the_mesh_of_a_field(
    home: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """By real classes of Stable Diffusion with random weights: the files are whole, and say so."""
    first, second = tiny_folder("if"), tiny_folder("sd-v")
    options = OptimizeConfig(
        steps=2,
        resolutions=(8,),
        resolution_milestones=(),
        step_size=0.2,
        occupancy_resolution=8,
        view_prompts="interpolated",
        field=SMALL,
        refine=RefineOptions(
            refine_steps=2,
            refine_teacher=str(second),
            refine_resolution=32,
            refine_views_per_step=2,
            refine_guidance_scale=7.5,
            tetrahedra_resolution=20,
        ),
    )
    config = GenerateConfig(
        prompt="a mug",
        teacher=str(first),
        device="cpu",
        out=home / "out",
        optimize=options,
        mesh=MeshConfig(formats=("glb",), max_faces=500, texture_size=64, mesh_resolution=16),
    )
    heard: list[Event] = []
    made = generate(config, on_event=heard.append)
    stages = [event.name for event in heard if isinstance(event, Stage)]
    assert stages == ["teacher", "optimize", "refine", "mesh", "export"]
    sides = [event.resolution for event in heard if isinstance(event, Step)]
    assert sides == [8, 8, 32, 32]
    refined: dict[str, Any] = made.result["refine"]
    assert refined["teacher"]["weights_sha256"] == read_folder(second).sha256()
    assert made.result["teacher"]["weights_sha256"] == read_folder(first).sha256()
    assert made.result["iso_density"] is None
    assert made.result["iso_iou"] > 0.9
    assert made.result["mesh"]["watertight"]
    assert made.result["seconds"]["refine"] > 0
    scene = trimesh.load(made.folder / "mesh.glb")
    assert isinstance(scene, trimesh.Scene)
    (mesh,) = scene.geometry.values()
    assert isinstance(mesh, trimesh.Trimesh)
    assert 0 < len(mesh.faces) <= 500
    assert torch.isfinite(torch.from_numpy(mesh.vertices.copy())).all()
    # And what is recorded makes the same files again.
    heard.clear()
    result = made.folder / "result.json"
    again = reproduce(ReproduceConfig(result=result, out=home / "again"), on_event=heard.append)
    assert again.folder != made.folder
    assert not [event for event in heard if isinstance(event, Warning)]
    assert again.result["files"]["mesh.glb"] == made.result["files"]["mesh.glb"]
