"""The way from a field to a coloured mesh, start to end."""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from nerf.mesh.bake import SurfaceColor, bake_texture, color_vertices, ray_color
from nerf.mesh.iso_surface import (
    EmptySurfaceError,
    PointFunction,
    extract_surface,
    keep_large_components,
    sample_density,
)
from nerf.mesh.iso_threshold import FieldViews, choose_iso_threshold
from nerf.mesh.raster import mesh_silhouettes
from nerf.mesh.simplify import decimate, taubin_smooth
from nerf.mesh.textured_mesh import FloatArray, IntArray, TexturedMesh


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How fine the mesh is.

    resolution: grid nodes per side of the cube. max_faces: the triangle budget, applied before
    colouring. colors: a baked texture of texture_size^2 texels, or one colour per vertex.
    smoothing_iterations: Taubin iterations on the marching-cubes surface. min_area_share:
    components smaller than this share of the largest one's area are dropped as floaters.
    """

    resolution: int = 128
    max_faces: int = 40_000
    colors: Literal["texture", "vertex"] = "texture"
    texture_size: int = 1024
    smoothing_iterations: int = 8
    min_area_share: float = 0.02

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ValueError(f"resolution must be at least 8, got {self.resolution}.")
        if self.max_faces < 4:
            raise ValueError(f"max_faces must be at least 4, got {self.max_faces}.")
        if self.colors not in ("texture", "vertex"):
            raise ValueError(f'colors must be "texture" or "vertex", got {self.colors!r}.')
        if not 16 <= self.texture_size <= 8192:
            raise ValueError(f"texture_size must lie in [16, 8192], got {self.texture_size}.")
        if self.smoothing_iterations < 0:
            raise ValueError(
                f"smoothing_iterations must not be negative, got {self.smoothing_iterations}."
            )
        if not 0 <= self.min_area_share <= 1:
            raise ValueError(f"min_area_share must lie in [0, 1], got {self.min_area_share}.")


@dataclass(frozen=True, kw_only=True)
class ExtractedMesh:
    """mesh, with the density threshold it stands at, and how well it matches the field.

    threshold: None for a surface that was a mesh already.

    silhouette_iou: IoU of the finished mesh's silhouettes with opacity > 0.5, pooled over the
    views; None when no views were given. seconds: wall time of each stage.
    """

    mesh: TexturedMesh
    threshold: float | None
    silhouette_iou: float | None
    seconds: dict[str, float]


def extract_mesh(
    density: PointFunction,
    albedo: PointFunction,
    config: MeshConfig,
    *,
    views: FieldViews | None = None,
    threshold: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ExtractedMesh:
    """The field's surface as a coloured mesh, in the field's own coordinates.

    density: points [N, 3] in [-1, 1]^3 -> [N]; albedo: -> [N, 3] in [0, 1]; see bake.ray_color for
    how the two make a surface's colour. The threshold is
    chosen to match views unless it is given; with both, views only measure the IoU. Raises
    EmptySurfaceError for an empty field, NonFiniteDensityError or NonFiniteColorError (both are
    ValueError) for a damaged one, and AtlasUnavailableError for colors="texture" without xatlas.
    """
    if views is None and threshold is None:
        raise ValueError("give views to choose the iso-threshold by, or the threshold itself.")
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = now - clock
        clock = now

    grid = sample_density(density, config.resolution, device=device, dtype=dtype)
    lap("density_grid")
    if threshold is None:
        assert views is not None
        threshold = choose_iso_threshold(grid, views).density
        lap("iso_threshold")
    vertices, faces = extract_surface(grid, threshold)
    vertices, faces = keep_large_components(vertices, faces, min_area_share=config.min_area_share)
    vertices = taubin_smooth(vertices, faces, iterations=config.smoothing_iterations)
    lap("surface")
    return _reduced_and_colored(
        vertices,
        faces,
        ray_color(density, albedo),
        config,
        threshold=threshold,
        views=views,
        seconds=seconds,
        device=device,
        dtype=dtype,
    )


def color_mesh(
    vertices: FloatArray,
    faces: IntArray,
    color: SurfaceColor,
    config: MeshConfig,
    *,
    views: FieldViews | None = None,
    device: torch.device | str = "cpu",
) -> ExtractedMesh:
    """A surface that is a mesh already, within the triangle budget and coloured.

    color: points [N, 3] and unit normals [N, 3] to [N, 3] in [0, 1]. views: silhouettes of the
    surface itself, for the IoU that is left. Neither smoothed nor resampled, so config.resolution
    and config.smoothing_iterations say nothing here. Raises EmptySurfaceError for no faces,
    NonFiniteColorError, and AtlasUnavailableError for colors="texture" without xatlas.
    """
    if len(faces) == 0:
        raise EmptySurfaceError("the surface has no faces: it has vanished.")
    vertices, faces = keep_large_components(vertices, faces, min_area_share=config.min_area_share)
    return _reduced_and_colored(
        vertices,
        faces,
        color,
        config,
        threshold=None,
        views=views,
        seconds={},
        device=device,
        dtype=torch.float32,
    )


def _reduced_and_colored(
    vertices: FloatArray,
    faces: IntArray,
    color: SurfaceColor,
    config: MeshConfig,
    *,
    threshold: float | None,
    views: FieldViews | None,
    seconds: dict[str, float],
    device: torch.device | str,
    dtype: torch.dtype,
) -> ExtractedMesh:
    """The last stages, with their wall time added to `seconds`."""
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = now - clock
        clock = now

    vertices, faces = decimate(vertices, faces, max_faces=config.max_faces)
    lap("decimation")
    iou = None
    if views is not None:
        iou = silhouette_iou(vertices, faces, views)
        lap("silhouettes")
    if config.colors == "texture":
        mesh = bake_texture(
            vertices, faces, color, texture_size=config.texture_size, device=device, dtype=dtype
        )
    else:
        mesh = color_vertices(vertices, faces, color, device=device, dtype=dtype)
    lap("colors")
    return ExtractedMesh(mesh=mesh, threshold=threshold, silhouette_iou=iou, seconds=seconds)


def silhouette_iou(vertices: np.ndarray, faces: np.ndarray, views: FieldViews) -> float:
    """IoU of the mesh's silhouettes with opacity > 0.5, pooled over all views."""
    target = views.opacity > 0.5
    mask = mesh_silhouettes(
        vertices, faces, views.c2w, views.fovy_deg, target.shape[1], target.shape[2]
    )
    return float((mask & target).sum() / max(int((mask | target).sum()), 1))
