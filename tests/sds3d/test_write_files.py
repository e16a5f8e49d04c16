"""From a field to files that another reader opens."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nerf import mesh as meshes
from sds3d import write_mesh as module
from sds3d.config import GenerateConfig, MeshConfig
from sds3d.errors import EmptyField
from sds3d.events import Event, Stage, Warning
from sds3d.field_representation import FieldRepresentation
from sds3d.optimize import Optimized
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.write_files import write_files
from sds3d.write_mesh import opacity_views


@pytest.fixture(scope="module")
def config() -> GenerateConfig:
    small = FieldOptions(n_levels=2, log2_table_size=8, finest_resolution=16)
    return GenerateConfig(
        prompt="a ball",
        device="cpu",
        optimize=OptimizeConfig(field=small, step_size=0.05),
        mesh=MeshConfig(max_faces=2000, texture_size=64, mesh_resolution=40),
    )


def optimized(*particles: FieldRepresentation) -> Optimized:
    return Optimized(particles=particles, step=0, seconds={}, health=[], stopped=False)


@pytest.fixture(scope="module")
def particle(config: GenerateConfig) -> FieldRepresentation:
    """The field as it starts: an opaque ball in the middle."""
    options = dataclasses.replace(config.optimize, occupancy_resolution=16)
    return FieldRepresentation(options, 0, 0, "cpu")


@pytest.fixture(scope="module")
def ball(particle: FieldRepresentation) -> Optimized:
    return optimized(particle)


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
    config: GenerateConfig, tmp_path: Path, heard: list[Event]
) -> None:
    empty = optimized(emptied(config))
    with pytest.raises(EmptyField, match="--seed"):
        write_files(empty, config, tmp_path, heard.append)
    assert list(tmp_path.iterdir()) == []


def emptied(config: GenerateConfig) -> FieldRepresentation:
    """A field without matter."""
    particle = FieldRepresentation(config.optimize, 0, 0, "cpu")
    with torch.no_grad():
        particle.field.head.bias[0] = -1e4
    return particle


def test_each_particle_gets_its_files_and_an_empty_one_takes_none_of_their_places(
    particle: FieldRepresentation, config: GenerateConfig, tmp_path: Path, heard: list[Event]
) -> None:
    mesh = dataclasses.replace(config.mesh, texture_size=0, formats=("glb",))
    chosen = dataclasses.replace(config, mesh=mesh)
    made = write_files(
        optimized(emptied(config), particle, particle), chosen, tmp_path, heard.append
    )
    names = {"mesh.glb", "turntable.mp4", "preview.png"}
    assert {p.name for p in tmp_path.iterdir()} == {*names, "particle-3"}
    assert {p.name for p in (tmp_path / "particle-3").iterdir()} == names
    assert (tmp_path / "mesh.glb").read_bytes() == (
        tmp_path / "particle-3" / "mesh.glb"
    ).read_bytes()
    (other,) = made["particles"]
    assert other["folder"] == "particle-3"
    assert other["mesh"] == made["mesh"]
    assert "seconds" not in other
    (warning,) = [event for event in heard if isinstance(event, Warning)]
    assert warning.text.startswith("particle 1: ")
    nothing = optimized(emptied(config), emptied(config))
    with pytest.raises(EmptyField):
        write_files(nothing, chosen, tmp_path / "particle-3", heard.append)


def test_the_evidence_for_the_threshold_is_a_disc_in_every_view(
    particle: FieldRepresentation, config: GenerateConfig
) -> None:
    views = opacity_views(particle, config)
    assert views.opacity.shape == (8, 96, 96)
    covered = (views.opacity > 0.5).mean(axis=(1, 2))
    assert covered.min() > 0.02
    assert np.ptp(covered) < 0.1 * covered.mean()
    assert np.linalg.norm(views.c2w[:, :3, 3], axis=1) == pytest.approx(np.full(8, 2.9), rel=1e-5)
