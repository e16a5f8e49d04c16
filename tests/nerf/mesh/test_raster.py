import numpy as np
import pytest
import torch
import trimesh

from nerf.cameras import camera_rays, orbit_c2w, project
from nerf.mesh.raster import Shading, mesh_silhouettes, render_mesh
from nerf.mesh.raster import project as project_numpy
from nerf.mesh.textured_mesh import TexturedMesh, vertex_normals

FOVY_DEG = 40.0
FLAT = Shading(ambient=1.0, background=(0.0, 0.0, 0.0), supersampling=1)


def colored(mesh: trimesh.Trimesh, color=(1.0, 1.0, 1.0)) -> TexturedMesh:
    vertices = np.asarray(mesh.vertices, dtype=np.float32)
    faces = np.asarray(mesh.faces, dtype=np.int32)
    return TexturedMesh(
        vertices=vertices,
        faces=faces,
        normals=vertex_normals(vertices, faces),
        vertex_colors=np.broadcast_to(np.asarray(color, np.float32), vertices.shape).copy(),
    )


def sphere_pixels(frames: np.ndarray) -> np.ndarray:
    """[H, W]: pixels well inside a centred sphere's picture, away from its edge."""
    height, width = frames.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows + 0.5 - height / 2, columns + 0.5 - width / 2) < 0.3 * height


def quad(texture: np.ndarray) -> TexturedMesh:
    """A square in the plane z = 0 that faces +Z, the texture upright on it."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    return TexturedMesh(
        vertices=vertices,
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        normals=np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        uv=np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32),
        texture=texture,
    )


def test_silhouettes_and_depth_order_agree_with_ray_casting():
    """Another renderer as oracle: trimesh's ray caster through the same pixel centres."""
    rng = np.random.default_rng(3)
    boxes = []
    for _ in range(6):
        box = trimesh.creation.box(extents=rng.uniform(0.2, 0.6, 3))
        box.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        box.apply_translation(rng.uniform(-0.4, 0.4, 3))
        boxes.append(box)
    height, width = 48, 64
    c2w = orbit_c2w([10.0, 130.0, 250.0], [15.0, -20.0, 60.0], 2.9)
    scene = trimesh.util.concatenate(boxes)
    assert isinstance(scene, trimesh.Trimesh)
    colors = np.repeat(rng.random((6, 3)).astype(np.float32), 8, axis=0)
    mesh = TexturedMesh(
        vertices=np.asarray(scene.vertices, np.float32),
        faces=np.asarray(scene.faces, np.int32),
        normals=np.tile(np.array([0, 1, 0], np.float32), (48, 1)),
        vertex_colors=colors,
    )
    frames = render_mesh(mesh, c2w.numpy(), FOVY_DEG, height, width, FLAT)
    masks = mesh_silhouettes(mesh.vertices, mesh.faces, c2w.numpy(), FOVY_DEG, height, width)
    origins, directions = camera_rays(c2w, FOVY_DEG, height, width)
    hit = scene.ray.intersects_first(
        origins.reshape(-1, 3).numpy(), directions.reshape(-1, 3).numpy()
    )
    hit = hit.reshape(3, height, width)
    assert 0.05 < (hit >= 0).mean() < 0.6
    assert ((hit >= 0) != masks).mean() < 1e-3
    both = (hit >= 0) & masks
    expected = np.round(colors[scene.faces[hit[both], 0]] * 255)
    assert (np.abs(frames[both] - expected).max(axis=-1) <= 1).mean() > 0.998


def test_it_uses_the_fields_camera():
    points = (
        torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    )
    c2w = orbit_c2w([35.0], [25.0], 2.9, dtype=torch.float64)
    ours = project_numpy(points.numpy(), c2w[0].numpy(), FOVY_DEG, 60, 90)
    theirs = project(points, c2w, FOVY_DEG, 60, 90)
    pixels = theirs[0] if isinstance(theirs, tuple) else theirs
    np.testing.assert_allclose(ours[:, :2], pixels.reshape(-1, 2).numpy(), atol=1e-4)


def test_a_spheres_silhouette_has_the_exact_area():
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.7)
    c2w = orbit_c2w([0.0, 77.0], [0.0, 30.0], 2.9).numpy()
    mask = mesh_silhouettes(sphere.vertices, sphere.faces, c2w, FOVY_DEG, 200, 200)
    radius = 0.7 / np.sqrt(2.9**2 - 0.7**2) * 100 / np.tan(np.deg2rad(20))
    np.testing.assert_allclose(mask.sum(axis=(1, 2)), np.pi * radius**2, rtol=5e-3)


def test_texture_stands_upright_and_front_is_plus_z():
    texture = np.zeros((64, 64, 3), dtype=np.uint8)
    texture[:32, :32] = (250, 10, 10)
    texture[:32, 32:] = (10, 250, 10)
    texture[32:, :32] = (10, 10, 250)
    texture[32:, 32:] = (240, 240, 20)
    frame = render_mesh(quad(texture), orbit_c2w(0.0, 0.0, 4.0).numpy(), 40.0, 100, 100, FLAT)[0]
    for row, column, expected in (
        (30, 30, texture[0, 0]),
        (30, 70, texture[0, 63]),
        (70, 30, texture[63, 0]),
        (70, 70, texture[63, 63]),
    ):
        np.testing.assert_array_equal(frame[row, column], expected)
    behind = render_mesh(quad(texture), orbit_c2w(180.0, 0.0, 4.0).numpy(), 40.0, 100, 100, FLAT)
    assert behind.max() == 0, "back faces are culled"


def test_texture_lookup_is_perspective_correct():
    # u over the quad as a ramp: seen obliquely, the colour must follow the true position.
    ramp = np.zeros((4, 256, 3), dtype=np.uint8)
    ramp[:] = np.arange(256)[None, :, None]
    c2w = orbit_c2w(60.0, 0.0, 3.0)
    frame = render_mesh(quad(ramp), c2w.numpy(), FOVY_DEG, 81, 81, FLAT)[0]
    origins, directions = camera_rays(c2w, FOVY_DEG, 81, 81)
    t = -origins[0, 40, :, 2] / directions[0, 40, :, 2]
    x = (origins[0, 40, :, 0] + t * directions[0, 40, :, 0]).numpy()
    inside = np.abs(x) < 0.97
    assert inside.sum() > 20
    expected = (x + 1) / 2 * 256 - 0.5
    np.testing.assert_allclose(frame[40, inside, 0], expected[inside], atol=1.0)


def test_light_comes_from_the_cameras_side_and_supersampling_softens_edges():
    sphere = colored(trimesh.creation.icosphere(subdivisions=4, radius=0.8), (0.8, 0.6, 0.4))
    c2w = orbit_c2w([0.0, 120.0], 10.0, 2.9).numpy()
    frames = render_mesh(sphere, c2w, FOVY_DEG, 64, 64, Shading(light=(0.0, 1.0, 0.0)))
    assert (frames[:, 18, 32, 0] > frames[:, 46, 32, 0].astype(int) + 20).all(), "lit from above"
    inside = sphere_pixels(frames)
    assert inside.mean() > 0.2
    difference = np.abs(frames[0].astype(int) - frames[1].astype(int)).max(-1)
    assert difference[inside].max() <= 8, "the light turns with the camera"
    hard = render_mesh(sphere, c2w, FOVY_DEG, 64, 64, FLAT)
    soft = render_mesh(
        sphere, c2w, FOVY_DEG, 64, 64, Shading(ambient=1.0, background=(0, 0, 0), supersampling=4)
    )
    assert len(np.unique(hard[..., 0])) == 2
    assert len(np.unique(soft[..., 0])) > 5
    assert soft[..., 0].mean() == pytest.approx(hard[..., 0].mean(), rel=0.02)


def test_faces_behind_the_camera_are_left_out():
    sphere = colored(trimesh.creation.icosphere(subdivisions=2, radius=0.5))
    pose = orbit_c2w(0.0, 0.0, 2.0).numpy()
    pose[0, :3, 2] *= -1
    pose[0, :3, 0] *= -1
    assert render_mesh(sphere, pose, FOVY_DEG, 32, 32, FLAT).max() == 0


def test_bad_shading_is_refused():
    with pytest.raises(ValueError, match="ambient"):
        Shading(ambient=1.5)
    with pytest.raises(ValueError, match="supersampling"):
        Shading(supersampling=0)
    with pytest.raises(ValueError, match="light"):
        Shading(light=(0.0, 0.0, 0.0))
