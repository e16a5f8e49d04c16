"""From an optimised field to a run's files: mesh, GLB and OBJ, turntable, contact sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nerf import mesh as meshes
from nerf.cameras import camera_rays, orbit_c2w
from nerf.rendering import RenderConfig, render

from .config import GenerateConfig, MeshConfig
from .encoding import uses_cuda_kernels
from .errors import EmptyField, Sds3dError
from .events import Listener, Stage, Warning
from .export import export_mesh, export_pictures
from .views import DISTANCE, FOVY_DEG

if TYPE_CHECKING:
    from .field_representation import FieldRepresentation

ISO_VIEWS = 8
ISO_ELEVATIONS_DEG = (10.0, 40.0)
ISO_SIDE = 96


def write_mesh(
    particle: FieldRepresentation, config: GenerateConfig, folder: Path, on_event: Listener
) -> dict[str, Any]:
    """Write the mesh in each of the config's formats, turntable.mp4 and preview.png to `folder`.

    Returns "mesh" (the gate's figures), "iso_iou" (silhouettes of the mesh against the field's
    opacity over 8 views), "iso_density" and "seconds" of the stages mesh and export. Raises
    EmptyField where the field has no surface, and the errors of `sds3d.export` where the mesh does
    not pass its gate or the folder cannot be written.
    """
    field = particle.colored

    def extract(settings: meshes.MeshConfig) -> meshes.ExtractedMesh:
        return meshes.extract_mesh(
            field.density,
            lambda points: field(points)[1],
            settings,
            views=opacity_views(particle, config),
            device=config.device,
        )

    return write_extracted(extract, config, folder, on_event)


def write_extracted(
    extract: Callable[[meshes.MeshConfig], meshes.ExtractedMesh],
    config: GenerateConfig,
    folder: Path,
    on_event: Listener,
) -> dict[str, Any]:
    """As `write_mesh`, of whatever mesh `extract` makes."""
    started = time.perf_counter()
    on_event(Stage("mesh"))
    extracted = _extracted(extract, config.mesh, on_event)
    meshed = time.perf_counter()
    on_event(Stage("export"))
    exported = export_mesh(extracted.mesh, folder, formats=config.mesh.formats)
    export_pictures(extracted.mesh, folder)
    done = time.perf_counter()
    return {
        "mesh": exported.report.as_dict(),
        "iso_iou": extracted.silhouette_iou,
        "iso_density": extracted.threshold,
        "mesh_seconds": extracted.seconds,
        "seconds": {"mesh": meshed - started, "export": done - meshed},
    }


def _extracted(
    extract: Callable[[meshes.MeshConfig], meshes.ExtractedMesh],
    mesh: MeshConfig,
    on_event: Listener,
) -> meshes.ExtractedMesh:
    try:
        try:
            return extract(_mesh_config(mesh, texture=mesh.texture_size > 0))
        except meshes.AtlasUnavailableError as error:
            on_event(Warning(f"colours are stored per vertex, not in a texture: {error}"))
            return extract(_mesh_config(mesh, texture=False))
    except meshes.EmptySurfaceError as error:
        raise EmptyField(
            f"the optimised field has no surface ({error}): try another --seed or more --steps"
        ) from error
    except (meshes.NonFiniteDensityError, meshes.NonFiniteColorError) as error:
        raise Sds3dError(f"the optimised field is damaged: {error}") from error


def _mesh_config(mesh: MeshConfig, *, texture: bool) -> meshes.MeshConfig:
    if not texture:
        return meshes.MeshConfig(
            resolution=mesh.mesh_resolution, max_faces=mesh.max_faces, colors="vertex"
        )
    return meshes.MeshConfig(
        resolution=mesh.mesh_resolution, max_faces=mesh.max_faces, texture_size=mesh.texture_size
    )


@torch.no_grad()
def opacity_views(particle: FieldRepresentation, config: GenerateConfig) -> meshes.FieldViews:
    """What the field looks like from 8 sides, alternately from a little and from well above."""
    c2w = iso_cameras(config.device)
    options = config.optimize
    settings = RenderConfig(step_size=options.step_size, cuda_kernels=uses_cuda_kernels(options))
    opacity = []
    for pose in c2w:
        rays_o, rays_d = camera_rays(pose[None], FOVY_DEG, ISO_SIDE, ISO_SIDE)
        rendered = render(particle.colored, particle.occupancy, rays_o, rays_d, settings)
        opacity.append(rendered.opacity)
    return meshes.FieldViews(
        opacity=torch.cat(opacity).float().cpu().numpy(),
        c2w=c2w.cpu().numpy(),
        fovy_deg=FOVY_DEG,
    )


def iso_cameras(device: str) -> torch.Tensor:
    """The 8 poses [8, 4, 4] from which silhouettes are compared."""
    azimuths_deg = [360.0 * view / ISO_VIEWS for view in range(ISO_VIEWS)]
    elevations_deg = [ISO_ELEVATIONS_DEG[view % 2] for view in range(ISO_VIEWS)]
    return orbit_c2w(azimuths_deg, elevations_deg, DISTANCE, device=device)
