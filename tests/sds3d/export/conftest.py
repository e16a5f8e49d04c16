from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from nerf.mesh import MeshConfig, TexturedMesh, extract_mesh

CENTERS = torch.tensor([[0.0, -0.2, 0.0], [0.0, 0.1, 0.5], [0.55, 0.1, -0.1]])
RADII = torch.tensor([0.5, 0.2, 0.22])
# Dark and light, so that a wrong transfer function shows; front, right and body.
COLORS = torch.tensor([[0.55, 0.11, 0.03], [0.05, 0.20, 0.97], [0.25, 0.80, 0.45]])


def distances(points: Tensor) -> Tensor:
    return (points[:, None] - CENTERS).norm(dim=-1) - RADII


def density(points: Tensor) -> Tensor:
    """A reddish ball with a blue nose towards +Z and a green ear towards +X."""
    return 80 * torch.sigmoid(-60 * distances(points).amin(-1))


def albedo(points: Tensor) -> Tensor:
    return COLORS[distances(points).argmin(-1)]


@pytest.fixture(scope="session")
def textured_mesh() -> TexturedMesh:
    config = MeshConfig(resolution=48, max_faces=1500, texture_size=128)
    return extract_mesh(density, albedo, config, threshold=20.0).mesh


@pytest.fixture(scope="session")
def colored_mesh() -> TexturedMesh:
    config = MeshConfig(resolution=48, max_faces=1500, colors="vertex")
    return extract_mesh(density, albedo, config, threshold=20.0).mesh


@pytest.fixture
def tetrahedron() -> TexturedMesh:
    """The smallest closed surface, each corner in a colour that needs all its bits."""
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 1]], np.float32)
    normals = vertices - vertices.mean(axis=0)
    return TexturedMesh(
        vertices=vertices,
        faces=np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32),
        normals=normals / np.linalg.norm(normals, axis=1, keepdims=True),
        vertex_colors=np.array(
            [[0, 0.5, 1], [0.01, 0.02, 0.03], [1, 1, 1], [0.3, 0, 0.7]], np.float32
        ),
    )


Loaded = tuple[trimesh.Trimesh, np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def load_textured() -> Callable[[Path], Loaded]:
    """trimesh as another reader: (mesh, uv with v upward [V, 2], texture [H, W, 3] uint8)."""

    def load(path: Path) -> Loaded:
        mesh = trimesh.load(path, force="mesh", process=False, maintain_order=True)
        assert isinstance(mesh, trimesh.Trimesh)
        assert isinstance(mesh.visual, TextureVisuals)
        assert mesh.visual.uv is not None
        material = mesh.visual.material
        if isinstance(material, PBRMaterial):
            image = material.baseColorTexture
        else:
            assert isinstance(material, SimpleMaterial)
            np.testing.assert_array_equal(material.diffuse[:3], [255, 255, 255])
            image = material.image
        assert isinstance(image, Image.Image)
        return mesh, np.asarray(mesh.visual.uv), np.asarray(image.convert("RGB"))

    return load
