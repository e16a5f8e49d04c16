from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh.textured_mesh import signed_volume
from sds3d.export import check_mesh, export_glb, export_obj, normalise
from sds3d.export.gate import (
    EmptyMeshError,
    InconsistentWindingError,
    MalformedMeshError,
    MeshRejectedError,
    NonFiniteMeshError,
    NonPositiveVolumeError,
)


def test_the_report_of_a_tetrahedron_is_exact(tetrahedron):
    report = check_mesh(tetrahedron)
    assert (report.vertices, report.faces, report.components) == (4, 4, 1)
    assert report.watertight
    assert (report.boundary_edges, report.non_manifold_edges) == (0, 0)
    assert report.volume == pytest.approx(1.0)
    # Three right triangles and the slanted one: |(-2,3,0) x (-2,0,1)| = |(3,2,6)| = 7.
    assert report.area == pytest.approx(3 + 1 + 1.5 + 3.5)
    assert report.size == (2.0, 3.0, 1.0)
    assert report.texture_size is None
    assert report.as_dict()["watertight"] is True


def test_seams_are_not_holes(textured_mesh):
    report = check_mesh(textured_mesh)
    assert report.watertight
    assert report.components == 1
    assert report.texture_size == (128, 128)
    unwelded_edges = len(np.unique(np.sort(textured_mesh.faces[:, [0, 1]], axis=1), axis=0))
    assert unwelded_edges > 0
    assert report.vertices > report.faces / 2 + 2, "more vertices than Euler's formula: seams"


def test_a_hole_is_reported_not_refused(tetrahedron):
    report = check_mesh(replace(tetrahedron, faces=tetrahedron.faces[1:]))
    assert not report.watertight
    assert report.boundary_edges == 3


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["vertices", "normals", "vertex_colors"])
def test_a_value_that_is_not_finite_is_refused(tetrahedron, field, poison):
    array = getattr(tetrahedron, field).copy()
    array[2, 1] = poison
    with pytest.raises(NonFiniteMeshError, match=f"{field} hold NaN or infinity in 1 rows"):
        check_mesh(replace(tetrahedron, **{field: array}))


def test_empty_flipped_and_flat_meshes_are_refused(tetrahedron):
    with pytest.raises(EmptyMeshError):
        check_mesh(replace(tetrahedron, faces=tetrahedron.faces[:0]))
    flipped_one = tetrahedron.faces.copy()
    flipped_one[2] = flipped_one[2, ::-1]
    with pytest.raises(InconsistentWindingError, match="3 edges"):
        check_mesh(replace(tetrahedron, faces=flipped_one))
    inside_out = np.ascontiguousarray(tetrahedron.faces[:, ::-1])
    with pytest.raises(NonPositiveVolumeError, match="inside out"):
        check_mesh(replace(tetrahedron, faces=inside_out))
    flat = tetrahedron.vertices * np.array([1, 1, 0], np.float32)
    with pytest.raises(NonPositiveVolumeError):
        check_mesh(replace(tetrahedron, vertices=flat))


def test_values_outside_their_range_are_refused(tetrahedron, textured_mesh):
    with pytest.raises(MalformedMeshError, match="faces name vertices"):
        check_mesh(replace(tetrahedron, faces=tetrahedron.faces + 1))
    with pytest.raises(MalformedMeshError, match="unit length"):
        check_mesh(replace(tetrahedron, normals=tetrahedron.normals * 2))
    with pytest.raises(MalformedMeshError, match="vertex_colors lie outside"):
        check_mesh(replace(tetrahedron, vertex_colors=tetrahedron.vertices))
    with pytest.raises(MalformedMeshError, match="uv lie outside"):
        check_mesh(replace(textured_mesh, uv=textured_mesh.uv + 0.5))


@pytest.mark.parametrize("fault", ["nan", "empty", "flipped", "inside out"])
@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_refused_mesh_leaves_no_file_and_keeps_the_old_one(tetrahedron, tmp_path, fault, suffix):
    faces, vertices = tetrahedron.faces.copy(), tetrahedron.vertices.copy()
    if fault == "nan":
        vertices[0, 0] = np.nan
    elif fault == "empty":
        faces = faces[:0]
    elif fault == "flipped":
        faces[0] = faces[0, ::-1]
    else:
        faces = np.ascontiguousarray(faces[:, ::-1])
    bad = replace(tetrahedron, vertices=vertices, faces=faces)
    export = export_glb if suffix == ".glb" else export_obj
    with pytest.raises(MeshRejectedError):
        export(bad, tmp_path / f"mesh{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_normalised_meshes_rest_on_the_ground_centred_one_metre_long(tetrahedron, textured_mesh):
    for mesh in (tetrahedron, textured_mesh):
        moved = normalise(mesh)
        low, high = moved.vertices.min(axis=0), moved.vertices.max(axis=0)
        assert low[1] == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-6)
        assert (high - low).max() == pytest.approx(1, abs=1e-6)
        longest = np.ptp(mesh.vertices, axis=0).max()
        before = signed_volume(mesh.vertices, mesh.faces) / longest**3
        assert signed_volume(moved.vertices, moved.faces) == pytest.approx(before, rel=1e-4)
        np.testing.assert_array_equal(moved.normals, mesh.normals)
        np.testing.assert_allclose(normalise(moved).vertices, moved.vertices, atol=1e-6)


def test_meshes_without_a_size_cannot_be_normalised(tetrahedron):
    with pytest.raises(NonPositiveVolumeError, match="no size"):
        normalise(replace(tetrahedron, vertices=np.ones((4, 3), np.float32)))
    with pytest.raises(NonFiniteMeshError):
        normalise(replace(tetrahedron, vertices=np.full((4, 3), np.nan, np.float32)))
