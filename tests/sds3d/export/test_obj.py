import re
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals

from nerf.mesh import TexturedMesh
from sds3d.export import export_obj


def material_lines(path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def test_geometry_and_texture_survive_another_reader(
    textured_mesh: TexturedMesh, load_textured, tmp_path
):
    assert textured_mesh.texture is not None
    hashes = export_obj(textured_mesh, tmp_path / "duck.obj")
    assert {str(p) for p in tmp_path.iterdir()} == set(hashes)
    mesh, uv, image = load_textured(tmp_path / "duck.obj")
    np.testing.assert_array_equal(
        mesh.vertices.astype(np.float32)[mesh.faces],
        textured_mesh.vertices[textured_mesh.faces],
    )
    assert mesh.volume > 0
    np.testing.assert_array_equal(image, textured_mesh.texture)
    # The same colours at the same places: look both up at each corner.
    assert textured_mesh.uv is not None
    flipped = np.stack([textured_mesh.uv[:, 0], 1 - textured_mesh.uv[:, 1]], axis=1)
    np.testing.assert_allclose(uv[mesh.faces], flipped[textured_mesh.faces], atol=1e-6)


def test_the_material_says_everything(textured_mesh: TexturedMesh, tmp_path):
    export_obj(textured_mesh, tmp_path / "duck.obj")
    material = material_lines(next(tmp_path.glob("*.mtl")))
    assert material["Ka"] == material["Kd"] == "1 1 1"
    assert material["Ks"] == "0 0 0"
    assert material["d"] == "1"
    assert (tmp_path / material["map_Kd"]).is_file()
    assert "/" not in material["map_Kd"]
    mtllib = re.search(r"^mtllib (\S+)$", (tmp_path / "duck.obj").read_text(), re.MULTILINE)
    assert mtllib is not None
    assert (tmp_path / mtllib[1]).is_file()


def test_vertex_colours_follow_the_positions(tetrahedron: TexturedMesh, tmp_path):
    assert tetrahedron.vertex_colors is not None
    export_obj(tetrahedron, tmp_path / "plain.obj")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.obj"]
    rows = [
        [float(x) for x in line.split()[1:]]
        for line in (tmp_path / "plain.obj").read_text().splitlines()
        if line.startswith("v ")
    ]
    values = np.array(rows, dtype=np.float32)
    np.testing.assert_array_equal(values[:, :3], tetrahedron.vertices)
    np.testing.assert_array_equal(values[:, 3:], tetrahedron.vertex_colors)
    mesh = trimesh.load(tmp_path / "plain.obj", force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    assert mesh.volume == pytest.approx(1.0)
    assert isinstance(mesh.visual, ColorVisuals)
    shown = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    assert np.abs(shown - tetrahedron.vertex_colors).max() <= 1 / 255 + 1e-6


def test_two_exports_in_one_folder_do_not_collide(
    textured_mesh: TexturedMesh, load_textured, tmp_path
):
    assert textured_mesh.texture is not None
    inverted = replace(textured_mesh, texture=255 - textured_mesh.texture)
    export_obj(textured_mesh, tmp_path / "one.obj")
    export_obj(inverted, tmp_path / "two.obj")
    assert len(list(tmp_path.iterdir())) == 6
    for name, expected in (("one", textured_mesh), ("two", inverted)):
        image = load_textured(tmp_path / f"{name}.obj")[2]
        np.testing.assert_array_equal(image, expected.texture)


def test_exporting_again_replaces_its_own_companions_only(textured_mesh: TexturedMesh, tmp_path):
    assert textured_mesh.texture is not None
    foreign = tmp_path / "mesh-0123456789ab.png"
    foreign.write_bytes(b"not ours")
    first = export_obj(textured_mesh, tmp_path / "mesh.obj")
    again = export_obj(textured_mesh, tmp_path / "mesh.obj")
    assert first == again
    other = replace(textured_mesh, texture=255 - textured_mesh.texture)
    second = export_obj(other, tmp_path / "mesh.obj")
    assert {str(p) for p in tmp_path.iterdir()} == {*second, str(foreign)}
    image = Image.open(next(p for p in second if p.endswith(".png")))
    np.testing.assert_array_equal(np.asarray(image), other.texture)


@pytest.mark.parametrize("name", ["two words.obj", "a#b.obj", "é.obj"])
def test_names_that_obj_cannot_refer_to_are_refused(tetrahedron: TexturedMesh, tmp_path, name):
    with pytest.raises(ValueError, match="cannot be referred to"):
        export_obj(tetrahedron, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
