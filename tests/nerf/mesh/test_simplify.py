import numpy as np
import pytest
import trimesh

from nerf.mesh.simplify import (
    decimate,
    drop_contradicting_faces,
    drop_degenerate_faces,
    taubin_smooth,
)
from nerf.mesh.textured_mesh import signed_volume, surface_area


def sphere(subdivisions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


def is_closed(faces: np.ndarray) -> bool:
    start = faces.reshape(-1).tolist()
    end = np.roll(faces, -1, axis=1).reshape(-1).tolist()
    edges = set(zip(start, end, strict=True))
    return len(edges) == len(start) and edges == {(b, a) for a, b in edges}


def test_decimation_meets_the_budget_and_keeps_the_shape():
    vertices, faces = sphere()
    for budget in (8000, 2000, 500):
        few_vertices, few_faces = decimate(vertices, faces, max_faces=budget)
        assert 0.9 * budget <= len(few_faces) <= budget
        assert is_closed(few_faces)
        exact = signed_volume(vertices, faces)
        assert signed_volume(few_vertices, few_faces) == pytest.approx(exact, rel=20 / budget)
        assert few_faces.max() == len(few_vertices) - 1
    same = decimate(vertices, faces, max_faces=len(faces))
    assert same[0] is vertices
    assert same[1] is faces
    with pytest.raises(ValueError, match="at least 4"):
        decimate(vertices, faces, max_faces=3)


def test_taubin_removes_noise_and_keeps_the_volume():
    vertices, faces = sphere()
    rng = np.random.default_rng(0)
    noisy = (vertices * (1 + 0.01 * rng.standard_normal((len(vertices), 1)))).astype(np.float32)
    smooth = taubin_smooth(noisy, faces, iterations=10)
    spread = [float(np.linalg.norm(v, axis=1).std()) for v in (noisy, smooth)]
    assert spread[1] < 0.5 * spread[0]
    exact = signed_volume(vertices, faces)
    assert signed_volume(smooth, faces) == pytest.approx(exact, rel=3e-3)
    assert surface_area(smooth, faces) < surface_area(noisy, faces)
    # A smooth sphere stays what it is, even after many steps; Laplacian smoothing would shrink it.
    long = taubin_smooth(vertices, faces, iterations=100)
    assert signed_volume(long, faces) == pytest.approx(exact, rel=1e-2)
    assert taubin_smooth(vertices, faces, iterations=0) is vertices


def test_degenerate_faces_go_and_the_surface_stays_closed():
    vertices, faces = sphere(2)
    extra = np.concatenate([vertices, np.array([[2, 2, 2]], np.float32)])
    back_to_back = np.array([[0, 1, 162], [1, 0, 162]], np.int32)
    collapsed = np.array([[5, 5, 9], [7, 9, 7]], np.int32)
    broken = np.concatenate([back_to_back, faces, collapsed])
    clean_vertices, clean_faces = drop_degenerate_faces(extra, broken)
    assert len(clean_faces) == len(faces)
    assert len(clean_vertices) == len(vertices)
    assert is_closed(clean_faces)
    np.testing.assert_array_equal(clean_vertices[clean_faces], vertices[faces])
    # The same face twice is one face.
    twice = drop_degenerate_faces(vertices, np.concatenate([faces, faces[:3]]))[1]
    assert len(twice) == len(faces)


def test_faces_that_contradict_each_other_go_and_the_rest_stays() -> None:
    vertices, faces = sphere(3)
    kept_vertices, kept = drop_contradicting_faces(vertices, faces)
    assert np.array_equal(kept_vertices, vertices)
    assert np.array_equal(kept, faces)
    flipped = faces.copy()
    flipped[7] = flipped[7, ::-1]
    assert not trimesh.Trimesh(vertices, flipped, process=False).is_winding_consistent
    kept_vertices, kept = drop_contradicting_faces(vertices, flipped)
    # The one and its three neighbours: a hole of four triangles.
    assert len(kept) == len(faces) - 4
    assert trimesh.Trimesh(kept_vertices, kept, process=False).is_winding_consistent
    assert 0 < signed_volume(kept_vertices, kept) < signed_volume(vertices, faces)
