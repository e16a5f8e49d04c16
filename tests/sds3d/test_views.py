"""The cameras of a run: where they may be, and how evenly they are spread."""

import math

import pytest
import torch

from sds3d.views import DISTANCE, DISTANCE_JITTER, Views, ring, sample_views


def draw(count: int, times: int, elevation: tuple[float, float] = (-10.0, 60.0)) -> list[Views]:
    g = torch.Generator().manual_seed(0)
    return [sample_views(count, elevation, g) for _ in range(times)]


def test_views_stay_in_their_ranges() -> None:
    for views in draw(4, 200, (-20.0, 35.0)):
        assert ((views.azimuth_deg >= 0) & (views.azimuth_deg < 360)).all()
        assert (views.elevation_deg >= -20 - 1e-3).all()
        assert (views.elevation_deg <= 35 + 1e-3).all()
        assert ((views.distance - DISTANCE).abs() <= DISTANCE_JITTER + 1e-6).all()


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_views_of_one_step_look_from_different_sides(count: int) -> None:
    for views in draw(count, 100):
        around = views.azimuth_deg.sort().values
        gaps = torch.cat([around.diff(), around[:1] + 360 - around[-1:]])
        # Strata are 360/count wide and the jitter fills half of each.
        assert gaps.min() >= 180 / count - 1e-2
        assert gaps.max() <= 540 / count + 1e-2 or count == 1


def test_every_azimuth_is_as_likely_and_every_height_on_the_sphere_too() -> None:
    views = draw(2, 4000)
    azimuth = torch.cat([v.azimuth_deg for v in views]) / 360
    low, high = math.sin(math.radians(-10)), math.sin(math.radians(60))
    height = torch.cat([torch.sin(torch.deg2rad(v.elevation_deg)) for v in views])
    for sample in (azimuth, (height - low) / (high - low)):
        ordered = sample.sort().values
        exact = (torch.arange(len(ordered)) + 0.5) / len(ordered)
        # Kolmogorov: 1.95 / sqrt(n) is exceeded once in a thousand draws.
        assert (ordered - exact).abs().max() < 1.95 / math.sqrt(len(ordered))
    # Uniform in degrees would be something else by far.
    degrees = ((torch.rad2deg(torch.asin(height)) + 10) / 70).sort().values
    assert (degrees - exact).abs().max() > 4 / math.sqrt(len(ordered))


def test_the_same_generator_gives_the_same_views_and_another_gives_others() -> None:
    first, again, other = (
        sample_views(3, (0.0, 30.0), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.camera, again.camera)
    assert torch.equal(first.distance, again.distance)
    assert not torch.equal(first.camera, other.camera)


def test_the_camera_is_azimuth_and_elevation_in_degrees() -> None:
    views = draw(5, 1)[0]
    assert views.camera.shape == (5, 2)
    assert torch.equal(views.camera[:, 0], views.azimuth_deg)
    assert torch.equal(views.camera[:, 1], views.elevation_deg)


def test_a_ring_begins_in_front_and_goes_evenly_around() -> None:
    views = ring(4, 15.0)
    assert views.azimuth_deg.tolist() == [0, 90, 180, 270]
    assert views.elevation_deg.tolist() == [15] * 4
    assert (views.distance == DISTANCE).all()


def test_one_elevation_is_a_range_too() -> None:
    for views in draw(3, 20, (25.0, 25.0)):
        torch.testing.assert_close(views.elevation_deg, torch.full((3,), 25.0), atol=1e-3, rtol=0)
