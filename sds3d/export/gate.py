"""The gate every mesh passes before a file gets its name, and the frame it is exported in."""

from dataclasses import asdict, dataclass

import numpy as np

from nerf.mesh.textured_mesh import (
    TexturedMesh,
    face_components,
    signed_volume,
    surface_area,
    weld,
)
from sds3d.errors import Sds3dError

UNIT_NORMAL_TOLERANCE = 1e-3


class MeshRejectedError(Sds3dError):
    """The mesh would be a broken file; nothing was written."""


class EmptyMeshError(MeshRejectedError):
    """No faces or no vertices."""


class NonFiniteMeshError(MeshRejectedError):
    """NaN or infinity among positions, normals, texture coordinates or colours."""


class MalformedMeshError(MeshRejectedError):
    """Indices, normals, texture coordinates or colours outside their range."""


class InconsistentWindingError(MeshRejectedError):
    """Neighbouring faces disagree about which side is outside."""


class NonPositiveVolumeError(MeshRejectedError):
    """The surface is inside out, or flat."""


@dataclass(frozen=True, kw_only=True)
class MeshReport:
    """What the gate measured. vertices: as stored; the topology is that of the welded surface.

    boundary_edges: edges with one face only. non_manifold_edges: with more than two. size: the
    bounding box's sides.
    """

    vertices: int
    faces: int
    components: int
    watertight: bool
    boundary_edges: int
    non_manifold_edges: int
    volume: float
    area: float
    size: tuple[float, float, float]
    texture_size: tuple[int, int] | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check_mesh(mesh: TexturedMesh) -> MeshReport:
    """Refuse a mesh that is empty, not finite, inconsistently wound or of no positive volume.

    Raises a subclass of MeshRejectedError saying which. Watertightness is reported, not required:
    every viewer shows a mesh with a small hole.
    """
    if len(mesh.faces) == 0 or len(mesh.vertices) == 0:
        raise EmptyMeshError("the mesh has no faces; the field is empty at this threshold.")
    _check_values(mesh)
    welded_vertices, welded_faces = weld(mesh.vertices, mesh.faces)
    boundary, non_manifold, unbalanced = _edge_defects(welded_faces)
    if unbalanced:
        raise InconsistentWindingError(
            f"the faces at {unbalanced} edges are wound in opposite senses; some would be "
            "invisible in viewers that cull back faces."
        )
    volume = signed_volume(welded_vertices, welded_faces)
    if not volume > 0:
        raise NonPositiveVolumeError(
            f"the enclosed volume is {volume:.3g}, not positive: the surface is inside out or flat."
        )
    sides = mesh.vertices.max(axis=0) - mesh.vertices.min(axis=0)
    components = face_components(len(welded_vertices), welded_faces)
    return MeshReport(
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        components=int(components.max()) + 1,
        watertight=boundary == 0,
        boundary_edges=boundary,
        non_manifold_edges=non_manifold,
        volume=volume,
        area=surface_area(mesh.vertices, mesh.faces),
        size=(float(sides[0]), float(sides[1]), float(sides[2])),
        texture_size=None
        if mesh.texture is None
        else (mesh.texture.shape[1], mesh.texture.shape[0]),
    )


def normalise(mesh: TexturedMesh) -> TexturedMesh:
    """Rest on y = 0, centre in x and z, and make the longest side 1 (metre). Axes stay."""
    if len(mesh.vertices) == 0:
        raise EmptyMeshError("the mesh has no vertices; the field is empty at this threshold.")
    if not np.isfinite(mesh.vertices).all():
        raise NonFiniteMeshError("vertices hold NaN or infinity.")
    low = mesh.vertices.min(axis=0).astype(np.float64)
    high = mesh.vertices.max(axis=0).astype(np.float64)
    longest = float((high - low).max())
    if not longest > 0:
        raise NonPositiveVolumeError("all vertices coincide; the mesh has no size.")
    anchor = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return mesh.transformed(scale=1 / longest, offset=-anchor / longest)


def _check_values(mesh: TexturedMesh) -> None:
    arrays = {
        "vertices": mesh.vertices,
        "normals": mesh.normals,
        "uv": mesh.uv,
        "vertex_colors": mesh.vertex_colors,
    }
    for name, array in arrays.items():
        if array is not None and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).any(axis=-1).sum())
            raise NonFiniteMeshError(f"{name} hold NaN or infinity in {bad} rows.")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise MalformedMeshError(f"faces name vertices outside 0..{len(mesh.vertices) - 1}.")
    length = np.linalg.norm(mesh.normals.astype(np.float64), axis=1)
    if np.abs(length - 1).max() > UNIT_NORMAL_TOLERANCE:
        raise MalformedMeshError("normals are not of unit length.")
    for name, array in (("uv", mesh.uv), ("vertex_colors", mesh.vertex_colors)):
        if array is not None and (array.min() < 0 or array.max() > 1):
            raise MalformedMeshError(f"{name} lie outside [0, 1].")


def _edge_defects(faces: np.ndarray) -> tuple[int, int, int]:
    """Counts of boundary edges, of non-manifold edges, and of edges wound inconsistently.

    Each side of a consistently wound surface runs along an edge as often forward as backward; an
    open border leaves one over.
    """
    start = faces.reshape(-1)
    end = np.roll(faces, -1, axis=1).reshape(-1)
    real = start != end
    start, end = start[real].astype(np.int64), end[real].astype(np.int64)
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    _, edge = np.unique(key, return_inverse=True)
    edge = edge.reshape(-1)
    uses = np.bincount(edge)
    balance = np.abs(np.bincount(edge, weights=np.where(start < end, 1.0, -1.0)))
    return int((uses == 1).sum()), int((uses > 2).sum()), int((balance > 1).sum())
