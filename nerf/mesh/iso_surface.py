"""From a density field to closed triangle surfaces: a grid, marching cubes, large components."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from nerf.mesh.textured_mesh import (
    FloatArray,
    IntArray,
    compact_vertices,
    face_components,
    face_cross_products,
    face_volumes,
)

PointFunction = Callable[[torch.Tensor], torch.Tensor]

# Density is interpolated as log(density), where the soft edge of a trained field is nearly
# straight; densities below the floor are as good as empty at every threshold one would choose.
LOG_DENSITY_FLOOR = 1e-2
LOG_DENSITY_CEILING = 1e5
# No node's log-density is nearer to the level than this: a change of density of 0.05 %.
LEVEL_CLEARANCE = 5e-4


class EmptySurfaceError(ValueError):
    """The field holds nothing at this threshold, so there is no surface to extract."""


class NonFiniteDensityError(ValueError):
    """The density field returned NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class DensityGrid:
    """Log-density at the nodes of a regular grid over the cube [-1, 1]^3.

    log_density: [R, R, R] float32, indexed [x, y, z]; node i lies at -1 + 2 i / (R - 1).
    """

    log_density: NDArray[np.float32]

    @property
    def resolution(self) -> int:
        return self.log_density.shape[0]

    @property
    def spacing(self) -> float:
        return 2.0 / (self.resolution - 1)


def sample_density(
    density: PointFunction,
    resolution: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_points: int = 1 << 18,
) -> DensityGrid:
    """Evaluate density (points [N, 3] -> [N]) on a resolution^3 grid over [-1, 1]^3, no gradient.

    Raises NonFiniteDensityError where the field is NaN or infinite.
    """
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}.")
    axis = torch.linspace(-1.0, 1.0, resolution, device=device, dtype=dtype)
    values = torch.empty(resolution**3, device=device, dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, resolution**3, chunk_points):
            index = torch.arange(
                start, min(start + chunk_points, resolution**3), device=device, dtype=torch.long
            )
            x = axis[index // resolution**2]
            y = axis[index // resolution % resolution]
            z = axis[index % resolution]
            points = torch.stack([x, y, z], dim=-1)
            values[index] = density(points).reshape(-1).to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise NonFiniteDensityError(
            f"density is NaN or infinite at {bad} of {resolution**3} grid points; "
            "resume from an earlier checkpoint or lower the learning rate."
        )
    log_density = values.clamp(LOG_DENSITY_FLOOR, LOG_DENSITY_CEILING).log()
    return DensityGrid(
        log_density=log_density.reshape(resolution, resolution, resolution).cpu().numpy()
    )


def extract_surface(grid: DensityGrid, threshold: float) -> tuple[FloatArray, IntArray]:
    """Marching cubes at density == threshold: closed, outward-wound (vertices, faces).

    The grid is padded by one empty layer, so that a field touching the cube's border is closed
    there too. Raises EmptySurfaceError when no node, or every one, lies above the threshold.
    """
    if not LOG_DENSITY_FLOOR < threshold < LOG_DENSITY_CEILING:
        raise ValueError(
            f"threshold must lie between {LOG_DENSITY_FLOOR} and {LOG_DENSITY_CEILING}, "
            f"got {threshold}."
        )
    level = float(np.log(threshold))
    peak = float(grid.log_density.max())
    if not peak > level:
        raise EmptySurfaceError(
            f"the field's highest density, {np.exp(peak):.4g}, is below the threshold "
            f"{threshold:.4g}: it is empty or fog. Train longer or choose a lower threshold."
        )
    padded = np.pad(grid.log_density, 1, constant_values=np.float32(np.log(LOG_DENSITY_FLOOR)))
    # A node exactly at the level would give coinciding vertices that are not joined: cracks.
    close = np.abs(padded - level) < LEVEL_CLEARANCE
    padded[close] = level + np.where(padded[close] >= level, LEVEL_CLEARANCE, -LEVEL_CLEARANCE)
    vertices, faces, _, _ = marching_cubes(padded, level, allow_degenerate=True)
    # Index 1 of the padded grid is the cube's border at -1.
    world = (vertices.astype(np.float64) - 1.0) * grid.spacing - 1.0
    faces = np.ascontiguousarray(faces, dtype=np.int32)
    if face_volumes(world, faces).sum() < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return world.astype(np.float32), faces


def keep_large_components(
    vertices: FloatArray, faces: IntArray, *, min_area_share: float = 0.02
) -> tuple[FloatArray, IntArray]:
    """Drop floaters and sealed cavities.

    A component stays if its area is at least min_area_share of the largest one's, and if it
    encloses positive volume: the inner wall of a hollow object is wound the other way, cannot be
    seen from anywhere, and would take half the faces and half the texture.
    """
    if not 0 <= min_area_share <= 1:
        raise ValueError(f"min_area_share must lie in [0, 1], got {min_area_share}.")
    label = face_components(len(vertices), faces)
    areas = np.linalg.norm(face_cross_products(vertices, faces), axis=1) / 2
    area = np.bincount(label, weights=areas)
    volume = np.bincount(label, weights=face_volumes(vertices, faces))
    solid = volume > 0
    if not solid.any():
        raise EmptySurfaceError("no component of the surface encloses a positive volume.")
    keep = solid & (area >= min_area_share * area[solid].max())
    return compact_vertices(vertices, faces[keep[label]])
