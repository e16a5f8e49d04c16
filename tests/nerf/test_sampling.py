"""The march: the compiled one against the plain one, and both against geometry."""

import pytest
import torch

from nerf import sampling
from nerf.cameras import camera_rays, orbit_c2w
from nerf.sampling import RaySamples, intersect_aabb, march, march_reference, ray_jitter

CUBE = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
BRICK = (-0.5, -1.0, -0.25, 1.0, 0.75, 0.5)


def rays(size: int = 24, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    c2w = orbit_c2w(torch.tensor([20.0, 200.0], dtype=dtype), 15.0, 2.9)
    rays_o, rays_d = camera_rays(c2w, 40.0, size, size)
    return rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(a: RaySamples, b: RaySamples) -> None:
    for name in ("ray_indices", "t_starts", "t_ends", "offsets"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("aabb", [CUBE, BRICK])
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_compiled_march_equals_the_plain_one(aabb, jittered, share):
    rays_o, rays_d = rays()
    occupied = None if share is None else torch.rand(9, 17, 5, generator=generator()) < share
    jitter = ray_jitter(len(rays_o), generator(1), rays_o) if jittered else None
    options = {"aabb": aabb, "step_size": 0.037, "occupied": occupied, "jitter": jitter}
    fast, plain = march(rays_o, rays_d, **options), march_reference(rays_o, rays_d, **options)
    assert (len(plain) > 0) == (share != 0.0)
    assert_same(fast, plain)


def test_any_number_of_threads_gives_the_same_samples():
    rays_o, rays_d = rays(40)
    occupied = torch.rand(8, 8, 8, generator=generator()) < 0.5
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = march(rays_o, rays_d, aabb=CUBE, step_size=0.05, occupied=occupied)
        torch.set_num_threads(2)
        two = march(rays_o, rays_d, aabb=CUBE, step_size=0.05, occupied=occupied)
    finally:
        torch.set_num_threads(before)
    assert_same(one, two)


def test_plain_march_in_portions_is_the_plain_march(monkeypatch):
    rays_o, rays_d = rays()
    jitter = ray_jitter(len(rays_o), generator(), rays_o)
    options = {"aabb": CUBE, "step_size": 0.1, "jitter": jitter}
    whole = march_reference(rays_o, rays_d, **options)
    monkeypatch.setattr(sampling, "RAYS_AT_ONCE", 100)
    assert_same(march_reference(rays_o, rays_d, **options), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_cover_the_way_through_the_box_without_gap_or_overlap(dtype):
    rays_o, rays_d = rays(dtype=dtype)
    jitter = ray_jitter(len(rays_o), generator(), rays_o)
    t_near, t_far = intersect_aabb(rays_o, rays_d, BRICK)
    samples = march(rays_o, rays_d, aabb=BRICK, step_size=0.1, jitter=jitter)
    length = torch.zeros_like(t_near).index_add(
        0, samples.ray_indices, samples.t_ends - samples.t_starts
    )
    assert ((t_far - t_near) > 0.5).any()
    assert (t_far == t_near).any()
    torch.testing.assert_close(length, t_far - t_near)
    same_ray = samples.ray_indices[1:] == samples.ray_indices[:-1]
    assert torch.equal(samples.t_starts[1:][same_ray], samples.t_ends[:-1][same_ray])
    inner = same_ray[1:] & same_ray[:-1]
    lengths = (samples.t_ends - samples.t_starts)[1:-1][inner]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1), atol=2e-6, rtol=0)


def test_every_sample_lies_in_an_occupied_cell_and_none_is_missed():
    rays_o, rays_d = rays()
    occupied = torch.rand(8, 8, 8, generator=generator(2)) < 0.2
    everything = march(rays_o, rays_d, aabb=CUBE, step_size=0.04)
    points = everything.positions(rays_o, rays_d)
    cell = ((points + 1) * 4).floor().long().clamp(0, 7)
    wanted = everything.select(occupied[cell[:, 0], cell[:, 1], cell[:, 2]])
    assert 0 < len(wanted) < len(everything)
    assert_same(march(rays_o, rays_d, aabb=CUBE, step_size=0.04, occupied=occupied), wanted)


def test_jitter_is_uniform_over_the_step_and_given_by_the_generator():
    n = 20_000
    rays_o = torch.tensor([[0.0, 0.0, 3.0]]).expand(n, 3)
    rays_d = torch.tensor([[0.0, 0.0, -1.0]]).expand(n, 3)
    jitter = ray_jitter(n, generator(5), rays_o)
    assert torch.equal(jitter, ray_jitter(n, generator(5), rays_o))
    assert not torch.equal(jitter, ray_jitter(n, generator(6), rays_o))
    samples = march(rays_o, rays_d, aabb=CUBE, step_size=0.5, jitter=jitter)
    first_cut = samples.t_ends[samples.offsets[:-1]] - 2.0
    # The mean of n uniform numbers in [0, 0.5] has a standard deviation of 0.001.
    assert abs(first_cut.mean().item() - 0.25) < 0.004
    assert first_cut.max() > 0.49
    assert first_cut.min() < 0.01


def test_box_intersection_by_hand():
    rays_o = torch.tensor([[0.0, 0, 3], [0, 0, 0], [0, 0, 3], [5, 0, 0], [1, 0, 3]])
    rays_d = torch.tensor([[0.0, 0, -1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, -1]])
    t_near, t_far = intersect_aabb(rays_o, rays_d, CUBE)
    torch.testing.assert_close(t_near[:2], torch.tensor([2.0, 0.0]))  # outside; from within
    torch.testing.assert_close(t_far[:2], torch.tensor([4.0, 1.0]))
    assert (t_near[2:4] == t_far[2:4]).all()  # behind; beside
    # A ray within a face's plane must give no nan, whichever side it is counted to.
    assert torch.isfinite(t_near[4])
    assert torch.isfinite(t_far[4])


def test_no_rays_and_rays_that_miss():
    nothing = march(torch.zeros(0, 3), torch.zeros(0, 3), aabb=CUBE, step_size=0.1)
    assert len(nothing) == 0
    assert nothing.n_rays == 0
    away = torch.tensor([[0.0, 0.0, 3.0]])
    missed = march(away, torch.tensor([[0.0, 1.0, 0.0]]), aabb=CUBE, step_size=0.1)
    assert len(missed) == 0
    assert missed.n_rays == 1


def test_step_must_be_positive():
    with pytest.raises(ValueError, match="step_size"):
        march(*rays(2), aabb=CUBE, step_size=0.0)
