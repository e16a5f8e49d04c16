"""The mesh that leaves the field: plain numpy arrays and the few integrals that check them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class TexturedMesh:
    """Triangles with colour, wound counter-clockwise seen from outside.

    vertices: [V, 3] float32. Vertices on a UV seam are repeated, bit for bit.
    faces: [F, 3] int32 indices into the vertices.
    normals: [V, 3] float32, unit length, pointing outward.
    uv: [V, 2] float32 in [0, 1], or None. The origin is the *top left* corner of the image and v
        grows downward (the glTF convention): texel (row, column) has its centre at
        ((column + 0.5) / width, (row + 0.5) / height).
    texture: [H, W, 3] uint8, sRGB, or None. Present exactly when uv is.
    vertex_colors: [V, 3] float32 in [0, 1], sRGB, or None.
    """

    vertices: FloatArray
    faces: IntArray
    normals: FloatArray
    uv: FloatArray | None = None
    texture: NDArray[np.uint8] | None = None
    vertex_colors: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.vertices)
        _require(self.vertices.shape == (count, 3), "vertices", "[V, 3]", self.vertices)
        _require(self.faces.ndim == 2 and self.faces.shape[1] == 3, "faces", "[F, 3]", self.faces)
        _require(self.normals.shape == (count, 3), "normals", f"[{count}, 3]", self.normals)
        if (self.uv is None) != (self.texture is None):
            raise ValueError("uv and texture go together: give both or neither.")
        if self.uv is not None:
            _require(self.uv.shape == (count, 2), "uv", f"[{count}, 2]", self.uv)
        if self.texture is not None:
            shape_ok = self.texture.ndim == 3 and self.texture.shape[2] == 3
            uint8_ok = self.texture.dtype == np.uint8
            _require(shape_ok and uint8_ok, "texture", "[H, W, 3] uint8", self.texture)
        if self.vertex_colors is not None:
            _require(
                self.vertex_colors.shape == (count, 3),
                "vertex_colors",
                f"[{count}, 3]",
                self.vertex_colors,
            )

    def transformed(self, *, scale: float, offset: NDArray[np.floating]) -> "TexturedMesh":
        """The mesh at scale * vertices + offset; a uniform positive scale leaves normals alone."""
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        moved = self.vertices.astype(np.float64) * scale + np.asarray(offset, dtype=np.float64)
        return replace(self, vertices=moved.astype(np.float32))


def _require(condition: bool, name: str, expected: str, array: np.ndarray) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {list(array.shape)} {array.dtype}.")


def face_cross_products(vertices: np.ndarray, faces: np.ndarray) -> NDArray[np.float64]:
    """[F, 3] float64: along each face's outward normal, twice its area long."""
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.cross(b - a, c - a)


def surface_area(vertices: np.ndarray, faces: np.ndarray) -> float:
    """The sum of the triangles' areas."""
    return float(np.linalg.norm(face_cross_products(vertices, faces), axis=1).sum() / 2)


def face_volumes(vertices: np.ndarray, faces: np.ndarray) -> NDArray[np.float64]:
    """[F]: signed volumes of the tetrahedra (origin, face); their sum is the enclosed volume.

    By the divergence theorem; positive when a closed surface is wound outward.
    """
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.einsum("fi,fi->f", a, np.cross(b, c)) / 6


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """The enclosed volume, negative when the surface is wound inward."""
    return float(face_volumes(vertices, faces).sum())


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> FloatArray:
    """[V, 3] unit normals, the area-weighted mean of the faces around each vertex.

    A vertex whose faces cancel (or that has none) gets +Y, so that every normal is a unit vector.
    """
    cross = face_cross_products(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(
                faces[:, corner], weights=cross[:, axis], minlength=len(vertices)
            )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    unit = np.where(length > 1e-30, total / np.maximum(length, 1e-30), np.array([0.0, 1.0, 0.0]))
    return unit.astype(np.float32)


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, IntArray]:
    """Merge vertices with equal coordinates; returns the [W, 3] vertices and [F, 3] faces.

    Undoes the repetition of vertices along UV seams, so that topology can be judged.
    """
    unique, inverse = np.unique(vertices, axis=0, return_inverse=True)
    return unique, inverse.reshape(-1).astype(np.int32)[faces]


def face_components(vertex_count: int, faces: np.ndarray) -> NDArray[np.int32]:
    """[F]: the number of the connected component (by shared vertices) of each face."""
    if len(faces) == 0:
        return np.zeros(0, dtype=np.int32)
    rows = faces[:, [0, 1]].reshape(-1)
    columns = faces[:, [1, 2]].reshape(-1)
    links = coo_matrix(
        (np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(vertex_count, vertex_count)
    )
    labels = connected_components(links, directed=False)[1]
    _, compact = np.unique(labels[faces[:, 0]], return_inverse=True)
    return compact.reshape(-1).astype(np.int32)


def compact_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, IntArray]:
    """Drop the vertices that no face uses, keeping the order of the rest."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces.reshape(-1)] = True
    new_index = np.cumsum(used) - 1
    return vertices[used], new_index[faces].astype(np.int32)
