import numpy as np
import pytest
import torch
from torch import Tensor

from nerf.cameras import camera_rays, orbit_c2w
from nerf.mesh import EmptySurfaceError, FieldViews, MeshConfig, Shading, extract_mesh, render_mesh
from nerf.mesh.textured_mesh import TexturedMesh, signed_volume, weld

C2W = orbit_c2w([45.0 * i for i in range(8)], 15.0, 2.9)
CENTERS = torch.tensor([[0.0, -0.2, 0.0], [0.0, 0.1, 0.5], [0.55, 0.1, -0.1]])
RADII = torch.tensor([0.5, 0.2, 0.22])
COLORS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.2, 0.9], [0.2, 0.8, 0.2]])


def distances(points: Tensor) -> Tensor:
    return (points[:, None] - CENTERS.to(points)).norm(dim=-1) - RADII.to(points)


def density(points: Tensor) -> Tensor:
    """A red ball with a blue nose towards +Z and a green ear towards +X."""
    return 80 * torch.sigmoid(-60 * distances(points).amin(-1))


def albedo(points: Tensor) -> Tensor:
    return COLORS.to(points)[distances(points).argmin(-1)]


@pytest.fixture(scope="module")
def views() -> FieldViews:
    origins, directions = camera_rays(C2W, 40.0, 48, 48)
    steps = torch.linspace(1.8, 4.0, 128)
    points = origins[..., None, :] + directions[..., None, :] * steps[:, None]
    sums = density(points.reshape(-1, 3)).reshape(points.shape[:-1]).sum(-1)
    opacity = 1 - torch.exp(-sums * (steps[1] - steps[0]))
    return FieldViews(opacity=opacity.numpy(), c2w=C2W.numpy(), fovy_deg=40.0)


@pytest.mark.parametrize("colors", ["texture", "vertex"])
def test_a_field_becomes_a_mesh_with_its_shape_colours_and_front(views, colors):
    config = MeshConfig(resolution=64, max_faces=3000, colors=colors, texture_size=256)
    extracted = extract_mesh(density, albedo, config, views=views)
    mesh = extracted.mesh
    assert extracted.silhouette_iou is not None
    assert extracted.silhouette_iou > 0.97
    assert len(mesh.faces) <= 3000
    assert signed_volume(*weld(mesh.vertices, mesh.faces)) > 0
    assert set(extracted.seconds) == {
        *("density_grid", "iso_threshold", "surface", "decimation", "silhouettes", "colors")
    }
    flat = Shading(ambient=1.0, background=(0, 0, 0), supersampling=1)
    front, right, back = render_mesh(
        mesh, orbit_c2w([0.0, 90.0, 180.0], 0.0, 2.9).numpy(), 40.0, 96, 96, flat
    ).astype(int)
    red, blue, green = (np.round(COLORS[i].numpy() * 255) for i in (0, 1, 2))

    def share(image: np.ndarray, color: np.ndarray) -> float:
        return float((np.abs(image - color).max(-1) <= 3).mean())

    np.testing.assert_allclose(front[43, 48], blue, atol=3)
    np.testing.assert_allclose(right[43, 52], green, atol=3)
    assert share(back, blue) == 0
    assert share(back, red) > 0.1
    # The ear towards +X is on the right of the picture in front, on the left from behind.
    ear_front = np.nonzero(np.abs(front - green).max(-1) <= 3)[1]
    ear_back = np.nonzero(np.abs(back - green).max(-1) <= 3)[1]
    assert ear_front.min() > 48 > ear_back.max()


def test_a_given_threshold_is_used_and_a_missing_one_needs_views(views):
    config = MeshConfig(resolution=32, colors="vertex", smoothing_iterations=0)
    given = extract_mesh(density, albedo, config, threshold=20.0, dtype=torch.float64)
    assert given.threshold == 20.0
    assert given.silhouette_iou is None
    assert isinstance(given.mesh, TexturedMesh)
    chosen = extract_mesh(density, albedo, config, views=views)
    assert chosen.threshold != 20.0
    with pytest.raises(ValueError, match="give views"):
        extract_mesh(density, albedo, config)


def test_an_empty_field_is_named(views):
    config = MeshConfig(resolution=16, colors="vertex")
    with pytest.raises(EmptySurfaceError):
        extract_mesh(lambda p: torch.zeros(len(p)), albedo, config, threshold=1.0)
    with pytest.raises(EmptySurfaceError):
        extract_mesh(lambda p: torch.zeros(len(p)), albedo, config, views=views)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 4),
        ("max_faces", 1),
        ("colors", "crayon"),
        ("texture_size", 8),
        ("smoothing_iterations", -1),
        ("min_area_share", 2.0),
    ],
)
def test_each_bad_option_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        MeshConfig(**{field: value})
