import io
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
from PIL import Image
from trimesh.visual.color import uv_to_color

from nerf.mesh import TexturedMesh
from sds3d.export import export_glb, export_mesh
from sds3d.export.glb import glb_bytes, linear_to_srgb, srgb_to_linear

KINDS = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Reread:
    """A GLB read back by pygltflib, which shares no code with the writer."""

    def __init__(self, path: Path) -> None:
        # Any: pygltflib declares every index as optional.
        self.gltf: Any = pygltflib.GLTF2().load_binary(str(path))
        self.blob: bytes = self.gltf.binary_blob()
        self.primitive = self.gltf.meshes[0].primitives[0]

    def array(self, name: str) -> np.ndarray:
        index = (
            self.primitive.indices
            if name == "indices"
            else getattr(self.primitive.attributes, name)
        )
        accessor = self.gltf.accessors[index]
        view = self.gltf.bufferViews[accessor.bufferView]
        values = np.frombuffer(
            self.blob,
            KINDS[accessor.componentType],
            accessor.count * WIDTH[accessor.type],
            (view.byteOffset or 0) + (accessor.byteOffset or 0),
        )
        values = values.reshape(accessor.count, WIDTH[accessor.type])
        return values / 65535 if accessor.normalized else values

    def image(self) -> np.ndarray:
        view = self.gltf.bufferViews[self.gltf.images[0].bufferView]
        data = self.blob[view.byteOffset : view.byteOffset + view.byteLength]
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_geometry_texture_and_material_survive(textured_mesh: TexturedMesh, tmp_path):
    hashes = export_glb(textured_mesh, tmp_path / "mesh.glb")
    assert list(hashes) == [str(tmp_path / "mesh.glb")]
    back = Reread(tmp_path / "mesh.glb")
    np.testing.assert_array_equal(back.array("POSITION"), textured_mesh.vertices)
    np.testing.assert_array_equal(back.array("indices").reshape(-1, 3), textured_mesh.faces)
    np.testing.assert_array_equal(back.array("TEXCOORD_0"), textured_mesh.uv)
    np.testing.assert_allclose(np.linalg.norm(back.array("NORMAL"), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(back.array("NORMAL"), textured_mesh.normals, atol=1e-6)
    np.testing.assert_array_equal(back.image(), textured_mesh.texture)
    assert back.primitive.attributes.COLOR_0 is None
    material = back.gltf.materials[back.primitive.material].pbrMetallicRoughness
    assert material.metallicFactor == 0
    assert material.roughnessFactor == pytest.approx(0.9)
    assert material.baseColorFactor == [1, 1, 1, 1]
    assert material.baseColorTexture.index == 0
    position = back.gltf.accessors[back.primitive.attributes.POSITION]
    np.testing.assert_array_equal(position.min, textured_mesh.vertices.min(axis=0))
    np.testing.assert_array_equal(position.max, textured_mesh.vertices.max(axis=0))


def test_vertex_colours_are_stored_linear_and_come_back_within_one_level(
    colored_mesh: TexturedMesh, tetrahedron: TexturedMesh, tmp_path
):
    for mesh in (colored_mesh, tetrahedron):
        assert mesh.vertex_colors is not None
        export_glb(mesh, tmp_path / "mesh.glb")
        back = Reread(tmp_path / "mesh.glb")
        color = back.array("COLOR_0")
        assert (color[:, 3] == 1).all()
        # glTF 2.0, 3.9.2: a viewer shows the sRGB encoding of COLOR_0 under white light.
        x = color[:, :3]
        shown = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
        assert np.abs(shown - mesh.vertex_colors).max() < 1 / 255
        assert back.gltf.textures == []
        material = back.gltf.materials[back.primitive.material].pbrMetallicRoughness
        assert (material.metallicFactor, material.baseColorFactor) == (0, [1, 1, 1, 1])


def test_every_level_survives_the_transfer_function():
    levels = np.arange(256) / 255
    stored = np.round(srgb_to_linear(levels) * 65535) / 65535
    np.testing.assert_array_equal(np.round(linear_to_srgb(stored) * 255), np.arange(256))
    assert srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404114, abs=1e-7)


def test_front_stays_front(textured_mesh: TexturedMesh, load_textured, tmp_path):
    """Read by trimesh: the blue nose is the foremost part in +Z, the green ear in +X."""
    export_mesh(textured_mesh, tmp_path, formats=("glb",))
    mesh, uv, image = load_textured(tmp_path / "mesh.glb")
    colors = uv_to_color(uv, Image.fromarray(image))[:, :3]
    for axis, expected in ((2, [13, 51, 247]), (0, [64, 204, 115])):
        extreme = mesh.vertices[:, axis].argmax()
        assert np.abs(colors[extreme].astype(int) - expected).max() <= 1
    assert mesh.volume > 0
    low, high = mesh.bounds
    assert low[1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-6)
    assert (high - low).max() == pytest.approx(1, abs=1e-6)


def test_the_same_mesh_gives_the_same_bytes(textured_mesh: TexturedMesh):
    assert glb_bytes(textured_mesh) == glb_bytes(textured_mesh)
