"""The tracer against other ways of seeing the same thing."""

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import binary_dilation, binary_erosion

from nerf.cameras import camera_rays, orbit_c2w, project
from sds3d.evaluate.exact import exact_mesh, world_solid
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, build
from sds3d.toybox.shapes import Part, Primitive, Solid, pack
from sds3d.toybox.tracer import DISTANCE, FOVY_DEG, Light, render_rgba

_EDGE = np.ones((3, 3), bool)


def _ball(center: tuple[float, float, float], radius: float = 0.06) -> Solid:
    part = Part(name="main", primitive=Primitive.ELLIPSOID, size=(radius,) * 3, center=center)
    return pack([part], (0.5, 0.5, 0.5))


@pytest.mark.parametrize(("azimuth_deg", "elevation_deg"), [(0, 0), (90, 0), (37, 25), (250, -15)])
def test_the_camera_is_that_of_the_renderer(azimuth_deg: float, elevation_deg: float) -> None:
    c2w = orbit_c2w(azimuth_deg, elevation_deg, DISTANCE, dtype=torch.float64)
    for center in ((0.5, 0.0, 0.0), (0.0, 0.6, 0.0), (0.1, -0.2, 0.55)):
        image = render_rgba(_ball(center), azimuth_deg=azimuth_deg, elevation_deg=elevation_deg)
        alpha = image[..., 3]
        rows, columns = np.mgrid[0:64, 0:64] + 0.5
        seen = np.array([(alpha * columns).sum(), (alpha * rows).sum()]) / alpha.sum()
        pixel, _ = project(torch.tensor([center], dtype=torch.float64), c2w, FOVY_DEG, 64, 64)
        np.testing.assert_allclose(seen, pixel[0, 0].numpy(), atol=0.35)


def test_azimuth_90_looks_from_plus_x_with_the_front_on_the_left() -> None:
    front = render_rgba(_ball((0.0, 0.0, 0.6)), azimuth_deg=90, elevation_deg=0)[..., 3]
    assert front[:, :32].sum() > 5
    assert front[:, 32:].sum() == 0
    above = render_rgba(_ball((0.0, 0.6, 0.0)), azimuth_deg=90, elevation_deg=0)[..., 3]
    assert above[:32].sum() > 5
    assert above[32:].sum() == 0


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_silhouettes_are_those_of_the_iso_surface_seen_by_rays(kind: str) -> None:
    pytest.importorskip("embreex")
    solid = world_solid(SceneSpec(kind=kind, color="red"), 0)
    mesh = exact_mesh(solid, colored=False)
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    c2w = orbit_c2w([20.0, 130.0, 280.0], [15.0, 50.0, -10.0], DISTANCE, dtype=torch.float64)
    rays_o, rays_d = (r.reshape(-1, 3).numpy() for r in camera_rays(c2w, FOVY_DEG, 64, 64))
    rays = surface.ray.intersects_any(rays_o, rays_d).reshape(3, 64, 64)
    for view, (azimuth_deg, elevation_deg) in enumerate(((20, 15), (130, 50), (280, -10))):
        traced = render_rgba(
            solid, azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, supersample=1
        )[..., 3]
        assert set(np.unique(traced)) == {0.0, 1.0}
        both = ((traced > 0.5) & rays[view]).sum()
        either = ((traced > 0.5) | rays[view]).sum()
        assert both / either > 0.95, f"view {view}"
        # What differs is the outline (the tracer stops 0.0015 before the surface) and a few rays
        # that run along a crease for more steps than the tracer takes.
        inside = np.asarray(binary_erosion(rays[view], _EDGE), bool)
        beside = np.asarray(binary_dilation(rays[view], _EDGE), bool)
        assert (traced[inside] < 0.5).sum() <= 0.015 * rays[view].sum()
        assert not (traced[~beside] > 0.5).any()


def test_a_ball_is_as_large_as_geometry_says() -> None:
    image = render_rgba(_ball((0.0, 0.0, 0.0), 0.7), azimuth_deg=0, elevation_deg=0)
    # A sphere of radius r at distance d subtends asin(r / d).
    tan = np.tan(np.arcsin(0.7 / DISTANCE)) / np.tan(np.radians(FOVY_DEG / 2))
    assert image[..., 3].sum() == pytest.approx(np.pi * (32 * tan) ** 2, rel=0.01)


def test_color_is_premultiplied_and_scales_with_the_part() -> None:
    spec = SceneSpec(kind="cube", color="white")
    image = render_rgba(build(spec, np.random.default_rng(0)), azimuth_deg=30, elevation_deg=20)
    assert (image[..., :3] <= image[..., 3:] + 1e-12).all()
    assert image.min() >= 0
    assert (image[image[..., 3] == 0] == 0).all()
    dark = render_rgba(_ball((0, 0, 0), 0.5), azimuth_deg=0, elevation_deg=0)
    # Light from above: the upper half is the brighter one.
    assert dark[:32, ..., 0].sum() > 1.1 * dark[32:, ..., 0].sum()


def test_light_follows_the_object_not_the_camera() -> None:
    light = Light(direction=(1.0, 0.0, 0.0), ambient=0.1)
    lit, unlit = (
        render_rgba(_ball((0, 0, 0), 0.7), azimuth_deg=a, elevation_deg=0, light=light)[
            ..., 0
        ].sum()
        for a in (90, 270)
    )
    assert lit > 3 * unlit


def test_rendering_twice_is_the_same() -> None:
    solid = build(SceneSpec(kind="robot", color="blue"), np.random.default_rng(4))
    one, two = (render_rgba(solid, azimuth_deg=33, elevation_deg=12) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_supersampling_is_the_mean_of_finer_pixels() -> None:
    solid = build(SceneSpec(kind="duck", color="yellow"), np.random.default_rng(0))
    coarse = render_rgba(solid, azimuth_deg=40, elevation_deg=20, size=32, supersample=2)
    fine = render_rgba(solid, azimuth_deg=40, elevation_deg=20, size=64, supersample=1)
    pooled = fine.reshape(32, 2, 32, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse, pooled, atol=1e-9)
