"""Random backgrounds: their sorts, their frequencies, their determinism."""

import pytest
import torch

from nerf.background import BackgroundConfig, random_background


def draw(n_views: int, config: BackgroundConfig | None = None, seed: int = 3) -> torch.Tensor:
    return random_background(n_views, torch.Generator().manual_seed(seed), config)


def test_frequencies_of_the_sorts():
    n = 20_000
    colours = draw(n, BackgroundConfig(white_probability=0.2, grey_probability=0.5))
    white = (colours == 1).all(dim=-1)
    grey = (colours == colours[:, :1]).all(dim=-1) & ~white
    # Three standard deviations of a binomial share with n draws are below 0.011.
    assert abs(white.float().mean().item() - 0.2) < 0.011
    assert abs(grey.float().mean().item() - 0.5) < 0.011
    assert colours.min() >= 0
    assert colours.max() <= 1
    coloured = colours[~white & ~grey]
    assert coloured.std(dim=0).min() > 0.25  # a uniform colour has 0.29 in each channel


def test_only_white_and_never_white():
    assert (draw(50, BackgroundConfig(white_probability=1.0, grey_probability=0.0)) == 1).all()
    assert (
        (draw(50, BackgroundConfig(white_probability=0.0, grey_probability=0.0)) < 1).any(-1).all()
    )


def test_same_generator_same_colours_and_the_stream_does_not_depend_on_the_sorts():
    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(7, seed=4))
    left, right = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    random_background(5, left, BackgroundConfig(white_probability=1.0, grey_probability=0.0))
    random_background(5, right, BackgroundConfig(white_probability=0.0, grey_probability=0.0))
    assert torch.equal(left.get_state(), right.get_state())


@pytest.mark.parametrize(
    ("white", "grey", "words"),
    [(1.2, 0.0, "white_probability"), (0.0, -0.1, "grey_probability"), (0.7, 0.7, "exceed 1")],
)
def test_bad_probabilities_are_named(white, grey, words):
    with pytest.raises(ValueError, match=words):
        BackgroundConfig(white_probability=white, grey_probability=grey)
