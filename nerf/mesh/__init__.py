"""From a radiance field, given as callables, to a coloured triangle mesh."""

from nerf.mesh.bake import AtlasUnavailableError, NonFiniteColorError
from nerf.mesh.extraction import ExtractedMesh, MeshConfig, extract_mesh, silhouette_iou
from nerf.mesh.iso_surface import EmptySurfaceError, NonFiniteDensityError
from nerf.mesh.iso_threshold import FieldViews
from nerf.mesh.raster import Shading, mesh_silhouettes, render_mesh
from nerf.mesh.textured_mesh import TexturedMesh

__all__ = [
    "AtlasUnavailableError",
    "EmptySurfaceError",
    "ExtractedMesh",
    "FieldViews",
    "MeshConfig",
    "NonFiniteColorError",
    "NonFiniteDensityError",
    "Shading",
    "TexturedMesh",
    "extract_mesh",
    "mesh_silhouettes",
    "render_mesh",
    "silhouette_iou",
]
