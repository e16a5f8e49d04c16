"""Fewer and smoother triangles: Taubin smoothing and quadric decimation."""

import fast_simplification
import numpy as np
from scipy.sparse import coo_matrix, diags

from nerf.mesh.textured_mesh import FloatArray, IntArray, compact_vertices

# "A signal processing approach to fair surface design", Taubin 1995: a shrinking step lambda and
# an inflating step mu make a low-pass filter with pass band 1 / lambda + 1 / mu = 0.1.
TAUBIN_LAMBDA = 0.5
TAUBIN_MU = 1.0 / (0.1 - 1.0 / TAUBIN_LAMBDA)


def taubin_smooth(vertices: FloatArray, faces: IntArray, *, iterations: int) -> FloatArray:
    """Remove marching cubes' stair steps without the shrinking of plain Laplacian smoothing.

    Each iteration is one step x + lambda (mean of neighbours - x) and one with mu < 0.
    """
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}.")
    if iterations == 0 or len(faces) == 0:
        return vertices
    count = len(vertices)
    rows = np.concatenate([faces[:, i] for i in (0, 1, 2, 1, 2, 0)])
    columns = np.concatenate([faces[:, i] for i in (1, 2, 0, 0, 1, 2)])
    adjacency = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    adjacency.data[:] = 1.0
    degree = np.maximum(np.asarray(adjacency.sum(axis=1)).reshape(-1), 1.0)
    mean = diags(1.0 / degree) @ adjacency
    x = vertices.astype(np.float64)
    for _ in range(iterations):
        for factor in (TAUBIN_LAMBDA, TAUBIN_MU):
            x = x + factor * (mean @ x - x)
    return x.astype(np.float32)


def decimate(
    vertices: FloatArray, faces: IntArray, *, max_faces: int
) -> tuple[FloatArray, IntArray]:
    """At most about max_faces triangles, by quadric edge collapse; unchanged if already fewer."""
    if max_faces < 4:
        raise ValueError(f"max_faces must be at least 4 (a tetrahedron), got {max_faces}.")
    if len(faces) <= max_faces:
        return vertices, faces
    simplified = fast_simplification.simplify(
        np.ascontiguousarray(vertices, dtype=np.float64),
        np.ascontiguousarray(faces, dtype=np.int32),
        target_count=max_faces,
        agg=5,
    )
    vertices, faces = drop_degenerate_faces(
        simplified[0].astype(np.float32), simplified[1].astype(np.int32)
    )
    return drop_contradicting_faces(vertices, faces)


def drop_degenerate_faces(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Drop faces that use a vertex twice, and pairs of faces lying back to back on each other.

    Both enclose nothing, and dropping them leaves a closed surface closed.
    """
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, group, size = np.unique(
        np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    group = group.reshape(-1)
    # Orientation of each face relative to its sorted corners: even or odd permutation.
    order = np.argsort(faces, axis=1)
    even = (order[:, 1] - order[:, 0]) % 3 == 1
    balance = np.bincount(group, weights=np.where(even, 1.0, -1.0))
    first = np.zeros(len(faces), dtype=bool)
    first[np.unique(group, return_index=True)[1]] = True
    keep = (size[group] == 1) | ((balance[group] != 0) & first)
    return compact_vertices(vertices, faces[keep])


def drop_contradicting_faces(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Drop the faces at an edge that neighbours run along in the same sense.

    Collapsing the edges of a ragged surface can fold it onto itself so that neighbours contradict
    each other about which side is out. What is dropped leaves a hole of a few triangles; without it
    the whole mesh would be of no use.
    """
    while len(faces):
        start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
        pairs = np.sort(np.stack([start, end], axis=1), axis=1)
        _, edge = np.unique(pairs, axis=0, return_inverse=True)
        edge = edge.reshape(-1)
        balance = np.bincount(edge, weights=np.where(start < end, 1.0, -1.0))
        contradicting = (np.abs(balance) > 1)[edge].reshape(faces.shape).any(axis=1)
        if not contradicting.any():
            break
        faces = faces[~contradicting]
    return compact_vertices(vertices, faces)
