"""Pictures of a mesh as its user will see it: fitted to the frame, from around."""

import numpy as np

from nerf.cameras import orbit_c2w
from nerf.mesh.raster import Shading, render_mesh
from nerf.mesh.textured_mesh import TexturedMesh

# The distance and field of view at which a sphere of radius FIT_RADIUS just fills the frame's
# middle, as the field's own default camera sees its objects.
DISTANCE = 2.9
FOVY_DEG = 40.0
FIT_RADIUS = 0.9


def render_orbit(
    mesh: TexturedMesh,
    *,
    views: int,
    elevation_deg: float = 15.0,
    size: int = 256,
    shading: Shading | None = None,
) -> np.ndarray:
    """[views, size, size, 3] uint8: equally spaced azimuths, the first one looking at the front.

    The mesh is centred and scaled for the picture alone, by the sphere around its vertices.
    """
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}.")
    low = mesh.vertices.min(axis=0).astype(np.float64)
    high = mesh.vertices.max(axis=0).astype(np.float64)
    center = (low + high) / 2
    radius = float(np.linalg.norm(mesh.vertices - center, axis=1).max())
    scale = FIT_RADIUS / max(radius, 1e-12)
    fitted = mesh.transformed(scale=scale, offset=-center * scale)
    azimuth_deg = [360.0 * view / views for view in range(views)]
    c2w = orbit_c2w(azimuth_deg, elevation_deg, DISTANCE).numpy()
    return render_mesh(fitted, c2w, FOVY_DEG, size, size, shading)
