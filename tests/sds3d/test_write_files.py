"""From a field to files that another reader opens."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nerf import mesh as meshes
from nerf.occupancy import OccupancyConfig, OccupancyGrid
from sds3d import write_files as module
from sds3d.config import FieldOptions, GenerateConfig, MeshConfig, OptimizeConfig
from sds3d.errors import EmptyField
from sds3d.events import Event, Stage, Warning
from sds3d.optimize import Optimized, make_field
from sds3d.write_files import opacity_views, write_files


@pytest.fixture(scope="module")
def config() -> GenerateConfig:
    small = FieldOptions(n_levels=2, log2_table_size=8, finest_resolution=16)
    return GenerateConfig(
        prompt="a ball",
        device="cpu",
        optimize=OptimizeConfig(field=small, step_size=0.05),
        mesh=MeshConfig(max_faces=2000, texture_size=64, mesh_resolution=40),
    )


@pytest.fixture(scope="module")
def ball(config: GenerateConfig) -> Optimized:
    """The field as it starts: an opaque ball in the middle."""
    field = make_field(config.optimize, 0)
    occupancy = OccupancyGrid(field.aabb, OccupancyConfig(resolution=16))
    return Optimized(field=field, occupancy=occupancy, step=0, seconds={}, health=[], stopped=False)


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = module.export_pictures
    monkeypatch.setattr(
        module,
        "export_pictures",
        lambda mesh, folder: pictures(mesh, folder, size=48, turntable_frames=3),
    )


def test_every_file_is_there_and_the_mesh_is_what_the_field_shows(
    ball: Optimized, config: GenerateConfig, tmp_path: Path, heard: list[Event]
) -> None:
    made = write_files(ball, config, tmp_path, heard.append)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"mesh.glb", "mesh.obj", "turntable.mp4", "preview.png"} <= names
    assert heard == [Stage("mesh"), Stage("export")]
    loaded = trimesh.load_mesh(tmp_path / "mesh.glb")
    assert len(loaded.faces) == made["mesh"]["faces"] <= 2000
    assert np.asarray(loaded.extents) == pytest.approx(np.ones(3), abs=0.05)
    assert made["mesh"]["watertight"] is True
    assert made["iso_iou"] > 0.95
    assert made["iso_density"] > 0
    assert set(made["seconds"]) == {"mesh", "export"}


def test_vertex_colours_are_stored_on_request(
    ball: Optimized, config: GenerateConfig, tmp_path: Path, heard: list[Event]
) -> None:
    mesh = dataclasses.replace(config.mesh, texture_size=0, formats=("glb",))
    made = write_files(ball, dataclasses.replace(config, mesh=mesh), tmp_path, heard.append)
    assert made["mesh"]["texture_size"] is None
    assert {p.name for p in tmp_path.iterdir()} == {"mesh.glb", "turntable.mp4", "preview.png"}


def test_vertex_colours_take_over_with_a_warning_where_there_is_no_atlas(
    ball: Optimized,
    config: GenerateConfig,
    tmp_path: Path,
    heard: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract = meshes.extract_mesh

    def without_atlas(density: Any, albedo: Any, settings: Any, **rest: Any) -> Any:
        if settings.colors == "texture":
            raise meshes.AtlasUnavailableError("xatlas is not installed")
        return extract(density, albedo, settings, **rest)

    monkeypatch.setattr(meshes, "extract_mesh", without_atlas)
    made = write_files(ball, config, tmp_path, heard.append)
    assert made["mesh"]["texture_size"] is None
    assert any("xatlas" in event.text for event in heard if isinstance(event, Warning))


def test_an_empty_field_is_named_with_what_to_try(
    ball: Optimized, config: GenerateConfig, tmp_path: Path, heard: list[Event]
) -> None:
    class Nothing:
        aabb = ball.field.aabb

        def density(self, points: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(points))

        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.density(points), torch.zeros_like(points)

    nothing: Any = Nothing()
    empty = dataclasses.replace(ball, field=nothing)
    with pytest.raises(EmptyField, match="--seed"):
        write_files(empty, config, tmp_path, heard.append)
    assert list(tmp_path.iterdir()) == []


def test_the_evidence_for_the_threshold_is_a_disc_in_every_view(
    ball: Optimized, config: GenerateConfig
) -> None:
    views = opacity_views(ball, config)
    assert views.opacity.shape == (8, 96, 96)
    covered = (views.opacity > 0.5).mean(axis=(1, 2))
    assert covered.min() > 0.02
    assert np.ptp(covered) < 0.1 * covered.mean()
    assert np.linalg.norm(views.c2w[:, :3, 3], axis=1) == pytest.approx(np.full(8, 2.9), rel=1e-5)
