"""The occupancy grid: what it sees, remembers, forgets and repeats."""

import pytest
import torch

from nerf.occupancy import OccupancyConfig, OccupancyGrid

CUBE = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def ball(points: torch.Tensor) -> torch.Tensor:
    return 50.0 * (points.norm(dim=-1) < 0.5)


def nothing(points: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(points[:, 0])


def cell_distances(resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest distance from the origin of each cell's points, [X, Y, Z] each."""
    edge = torch.linspace(-1, 1, resolution + 1)
    low, high = edge[:-1], edge[1:]
    near = torch.where(
        (low <= 0) & (high >= 0), torch.zeros(()), torch.minimum(low.abs(), high.abs())
    )
    far = torch.maximum(low.abs(), high.abs())

    def norm(x: torch.Tensor) -> torch.Tensor:
        squared = x.square()
        return (squared[:, None, None] + squared[None, :, None] + squared[None, None, :]).sqrt()

    return norm(near), norm(far)


def test_sees_exactly_the_ball():
    g = torch.Generator().manual_seed(0)
    grid = OccupancyGrid(CUBE, OccupancyConfig(resolution=16))
    assert grid.occupied.all()  # until it has looked
    for step in range(0, 80, 8):
        grid.update(step, ball, g)
    near, far = cell_distances(16)
    assert grid.occupied.shape == (16, 16, 16)
    assert grid.occupied[far < 0.5].all()
    assert not grid.occupied[near > 0.5].any()
    assert (far < 0.5).any()


def test_looks_only_every_n_steps():
    g = torch.Generator().manual_seed(0)
    grid = OccupancyGrid(CUBE, OccupancyConfig(resolution=8, update_every=4))
    asked = []

    def density(points: torch.Tensor) -> torch.Tensor:
        asked.append(len(points))
        return nothing(points)

    for step in range(9):
        grid.update(step, density, g)
    assert asked == [512, 512, 512]


def test_memory_decays_and_matter_that_left_is_forgotten():
    g = torch.Generator().manual_seed(0)
    config = OccupancyConfig(resolution=8, update_every=1, decay=0.5, density_threshold=0.3)
    grid = OccupancyGrid(CUBE, config)
    grid.update(0, lambda points: nothing(points) + 8.0 * (points[:, 0] > 0), g)
    before = grid.occupied.clone()
    assert before[4:].all()
    assert not before[:4].any()
    for step in range(1, 5):
        grid.update(step, nothing, g)
    torch.testing.assert_close(grid.remembered_density.max().item(), 0.5)  # 8 halved four times
    assert torch.equal(grid.occupied, before)
    grid.update(5, nothing, g)
    assert grid.remembered_density.max() == 0.25
    # Below the threshold everywhere: the mean, 0.125, decides instead, so that a field that grows
    # thin is not lost from sight.
    assert torch.equal(grid.occupied, before)


def test_dilation_grows_the_set_by_its_neighbours():
    g = torch.Generator().manual_seed(0)

    def corner(points: torch.Tensor) -> torch.Tensor:
        return 9.0 * (points < -0.75).all(dim=-1)

    plain, grown = (
        OccupancyGrid(CUBE, OccupancyConfig(resolution=8, dilation=reach)) for reach in (0, 1)
    )
    for grid in (plain, grown):
        grid.update(0, corner, g)
    assert plain.occupied.nonzero().tolist() == [[0, 0, 0]]
    assert grown.occupied.sum() == 8
    assert grown.occupied[:2, :2, :2].all()


def test_repeats_from_its_generator_and_leaves_the_global_ones_alone():
    def noise(points: torch.Tensor) -> torch.Tensor:
        return points.abs().sum(dim=-1)

    def run(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        grid = OccupancyGrid(CUBE, OccupancyConfig(resolution=8, warmup_steps=8))
        for step in (0, 8, 16):  # the last two draw their cells as well
            grid.update(step, noise, g)
        return grid.remembered_density.clone()

    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = run(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(run(3), first)
    assert not torch.equal(run(4), first)


def test_state_dict_restores_it():
    g = torch.Generator().manual_seed(0)
    grid, copy = (OccupancyGrid(CUBE, OccupancyConfig(resolution=8)) for _ in range(2))
    grid.update(0, ball, g)
    assert not torch.equal(copy.occupied, grid.occupied)
    copy.load_state_dict(grid.state_dict())
    assert torch.equal(copy.occupied, grid.occupied)
    assert torch.equal(copy.remembered_density, grid.remembered_density)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_density_that_is_not_finite_stays_in_sight_and_is_forgotten_once_mended(bad):
    g = torch.Generator().manual_seed(0)
    grid = OccupancyGrid(CUBE, OccupancyConfig(resolution=8, update_every=1, decay=0.5))
    grid.update(0, lambda points: torch.where(points[:, 0] > 0, bad, 0.0), g)
    assert grid.occupied[4:].all()
    assert not grid.occupied[:4].any()
    for step in range(1, 4):
        grid.update(step, lambda points: 9.0 * (points[:, 0] < 0), g)
    assert grid.occupied[:4].all()
    assert not grid.occupied[4:].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resolution": 0}, "resolution"),
        ({"update_every": 0}, "update_every"),
        ({"decay": 1.5}, "decay"),
        ({"density_threshold": -1.0}, "density_threshold"),
        ({"dilation": -1}, "dilation"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        OccupancyConfig(**arguments)


def test_a_cell_that_is_drawn_twice_remembers_the_same_whatever_the_threads():
    # Every point has a density of its own, so it shows which of two was written last.
    def rough(points: torch.Tensor) -> torch.Tensor:
        return (points * 1e4).sin().sum(dim=-1).abs()

    def remembered(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        g = torch.Generator().manual_seed(0)
        # Large enough for torch to divide the writing among threads.
        grid = OccupancyGrid(CUBE, OccupancyConfig(resolution=64, warmup_steps=0))
        for step in range(8, 32, 8):
            grid.update(step, rough, g)
        return grid.remembered_density

    before = torch.get_num_threads()
    try:
        alone, together = remembered(1), remembered(2)
    finally:
        torch.set_num_threads(before)
    assert alone.any()
    assert torch.equal(alone, together)
    assert not torch.are_deterministic_algorithms_enabled()
