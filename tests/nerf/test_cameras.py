"""The axis convention, checked on points whose place in the image is known by hand."""

import math

import pytest
import torch

from nerf.cameras import camera_rays, orbit_c2w, project


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "position"),
    [
        (0.0, 0.0, (0.0, 0.0, 2.0)),
        (90.0, 0.0, (2.0, 0.0, 0.0)),
        (180.0, 0.0, (0.0, 0.0, -2.0)),
        (-90.0, 0.0, (-2.0, 0.0, 0.0)),
        (0.0, 30.0, (0.0, 1.0, math.sqrt(3.0))),
    ],
)
def test_position_of_the_camera(azimuth_deg, elevation_deg, position):
    c2w = orbit_c2w(azimuth_deg, elevation_deg, 2.0, dtype=torch.float64)
    torch.testing.assert_close(c2w[0, :3, 3], torch.tensor(position, dtype=torch.float64))


def test_poses_are_rigid_and_look_at_the_origin():
    azimuth = torch.linspace(-170, 190, 13, dtype=torch.float64)
    elevation = torch.linspace(-90, 90, 13, dtype=torch.float64)
    c2w = orbit_c2w(azimuth, elevation, 2.9)
    rotation = c2w[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand(13, 3, 3)
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, eye)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(13, dtype=torch.float64))
    torch.testing.assert_close(-rotation[:, :, 2] * 2.9, -c2w[:, :3, 3])
    assert (rotation[:, 1, 1] >= 0).all()  # the image's up is never the world's down
    assert (c2w[:, 3] == torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).all()


def test_image_right_and_up_seen_from_the_front_and_from_the_side():
    c2w = orbit_c2w(torch.tensor([0.0, 90.0]), 0.0, 3.0)
    _, rays_d = camera_rays(c2w, 40.0, 8, 8)
    front, side = rays_d[0], rays_d[1]
    assert (front[:, -1, 0] > 0).all()  # the front view's right is +X
    assert (front[:, 0, 0] < 0).all()
    assert (front[0, :, 1] > 0).all()  # the first row is up, +Y
    assert (front[..., 2] < 0).all()  # looking toward -Z
    assert (side[:, -1, 2] < 0).all()  # from +X the right is -Z: the object's front is at the left
    assert (side[..., 0] < 0).all()


def test_rays_are_unit_pass_pixel_centres_and_span_the_field_of_view():
    c2w = orbit_c2w(torch.tensor([10.0, 200.0], dtype=torch.float64), 25.0, 2.9)
    height, width, fovy_deg = 6, 10, 40.0
    rays_o, rays_d = camera_rays(c2w, fovy_deg, height, width)
    assert rays_o.shape == rays_d.shape == (2, height, width, 3)
    assert rays_d.dtype == torch.float64
    torch.testing.assert_close(rays_d.norm(dim=-1), torch.ones(2, height, width).double())
    for view in range(2):
        points = (rays_o[view] + 2.3 * rays_d[view]).reshape(-1, 3)
        pixels, depth = project(points, c2w[view : view + 1], fovy_deg, height, width)
        rows, columns = torch.meshgrid(
            torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
        )
        expected = torch.stack([columns, rows], dim=-1).reshape(-1, 2).double()
        torch.testing.assert_close(pixels[0], expected)
        assert (depth > 0).all()


def test_known_point_lands_in_the_right_pixel():
    c2w = orbit_c2w(90.0, 0.0, 2.0, dtype=torch.float64)
    half = 2.0 * math.tan(math.radians(20.0))  # half the image's height in the plane x = 0
    point = torch.tensor([[0.0, 0.5 * half, -0.25 * half]], dtype=torch.float64)
    pixels, depth = project(point, c2w, 40.0, 64, 64)
    torch.testing.assert_close(pixels[0, 0], torch.tensor([40.0, 16.0], dtype=torch.float64))
    torch.testing.assert_close(depth[0, 0], torch.tensor(2.0, dtype=torch.float64))


def test_field_of_view_may_differ_by_view():
    c2w = orbit_c2w(torch.zeros(2, dtype=torch.float64), 0.0, 2.0)
    fovy_deg = torch.tensor([30.0, 60.0], dtype=torch.float64)
    _, together = camera_rays(c2w, fovy_deg, 4, 4)
    for view, fovy in enumerate((30.0, 60.0)):
        _, alone = camera_rays(c2w[:1], fovy, 4, 4)
        torch.testing.assert_close(together[view], alone[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: orbit_c2w(0.0, 0.0, 0.0), "distance"),
        (lambda: camera_rays(orbit_c2w(0.0, 0.0, 1.0), 180.0, 4, 4), "fovy_deg"),
        (lambda: camera_rays(orbit_c2w(0.0, 0.0, 1.0), 40.0, 0, 4), "height"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
