"""From a radiance field, given as callables, to a coloured triangle mesh."""

from nerf.mesh.bake import AtlasUnavailableError, NonFiniteColorError
from nerf.mesh.deformable_surface import DeformableSurface, signed_values
from nerf.mesh.extraction import (
    ExtractedMesh,
    MeshConfig,
    color_mesh,
    extract_mesh,
    silhouette_iou,
)
from nerf.mesh.iso_surface import EmptySurfaceError, NonFiniteDensityError, sample_density
from nerf.mesh.iso_threshold import FieldViews, choose_iso_threshold
from nerf.mesh.raster import Shading, mesh_silhouettes, render_mesh
from nerf.mesh.surface_rendering import SurfaceImages, render_surface, surface_roughness
from nerf.mesh.textured_mesh import TexturedMesh

__all__ = [
    "AtlasUnavailableError",
    "DeformableSurface",
    "EmptySurfaceError",
    "ExtractedMesh",
    "FieldViews",
    "MeshConfig",
    "NonFiniteColorError",
    "NonFiniteDensityError",
    "Shading",
    "SurfaceImages",
    "TexturedMesh",
    "choose_iso_threshold",
    "color_mesh",
    "extract_mesh",
    "mesh_silhouettes",
    "render_mesh",
    "render_surface",
    "sample_density",
    "signed_values",
    "silhouette_iou",
    "surface_roughness",
]
