"""View prompts: their regions, their mixtures, and what Perp-Neg avoids from each side."""

import math

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from sds3d.toybox.captions import OVERHEAD_TEMPLATES, VIEW_TEMPLATES, view_name
from sds3d.view_prompts import (
    VIEW_NAMES,
    ViewPrompts,
    perp_neg_weights,
    view_texts,
    view_weights,
)
from sds3d.views import Views, sample_views


def looking(azimuth_deg: list[float] | Tensor, elevation_deg: float = 10.0) -> Views:
    azimuth = torch.as_tensor(azimuth_deg)
    elevation = torch.full_like(azimuth, elevation_deg)
    return Views(azimuth_deg=azimuth, elevation_deg=elevation, distance=torch.ones_like(azimuth))


def texts(masks: bool = False) -> Conditioning:
    """Four embeddings [4, 3, 2] of different lengths, and the empty prompt's."""
    text = torch.arange(24.0).reshape(4, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]).bool() if masks else None
    return Conditioning(text=text, text_mask=mask, uncond=Conditioning(text=-torch.ones(4, 3, 2)))


def test_the_regions_are_those_that_the_worlds_captions_say() -> None:
    views = sample_views(2000, (-10.0, 89.0), torch.Generator().manual_seed(0))
    weights = view_weights(views, interpolated=False)
    assert torch.equal(weights.sum(1), torch.ones(2000))
    assert torch.equal(weights.amax(1), torch.ones(2000))
    named = [VIEW_NAMES[index] for index in weights.argmax(1).tolist()]
    pairs = zip(views.azimuth_deg.tolist(), views.elevation_deg.tolist(), strict=True)
    assert named == [view_name(azimuth, elevation) for azimuth, elevation in pairs]
    assert set(named) == set(VIEW_NAMES)


def test_the_embedded_teacher_was_trained_on_these_words() -> None:
    around = {template.format(name) for template in VIEW_TEMPLATES for name in VIEW_NAMES[:3]}
    for name, text in zip(VIEW_NAMES, view_texts("a red mug"), strict=True):
        suffix = text.removeprefix("a red mug")
        assert suffix in (OVERHEAD_TEMPLATES if name == "overhead" else around)


def test_interpolated_prompts_are_whole_on_the_axes_and_continuous_between() -> None:
    axes = view_weights(looking([0.0, 90.0, 180.0, 270.0, 45.0]), interpolated=True)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]]
    torch.testing.assert_close(axes, torch.tensor(expected))
    for elevation, share in ((45.0, 0.0), (60.0, 0.5), (75.0, 1.0), (88.0, 1.0)):
        weights = view_weights(looking([30.0], elevation), interpolated=True)
        assert weights[0, 3].item() == pytest.approx(share)
        assert weights.sum().item() == pytest.approx(1.0)
    around = view_weights(looking(torch.arange(0.0, 720.0, 0.5)), interpolated=True)
    # Linear over 90 degrees, through the turn of the circle too.
    assert around.diff(dim=0).abs().max().item() == pytest.approx(0.5 / 90, rel=1e-3)
    torch.testing.assert_close(around[:720], around[720:])


def test_a_views_conditioning_is_the_mixture_of_the_four() -> None:
    given = texts(masks=True)
    assert given.text is not None
    views = looking([0.0, 30.0, 180.0])
    mixed = ViewPrompts(texts=given, interpolated=True).at(views)
    assert mixed.text is not None
    assert mixed.text_mask is not None
    assert mixed.uncond is not None
    torch.testing.assert_close(mixed.text[1], (2 * given.text[0] + given.text[1]) / 3)
    # A token is real where it is in any prompt that takes part.
    assert mixed.text_mask.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert mixed.uncond.text is not None
    assert mixed.uncond.text.shape == (3, 3, 2)
    discrete = ViewPrompts(texts=given, interpolated=False).at(views).text
    assert discrete is not None
    assert torch.equal(discrete, given.text[[0, 0, 2]])


def test_what_is_avoided_follows_the_published_decays() -> None:
    """a e^(-b r) + c with (4, 0.5, -2.426), (1, 0.5, -0.606) and (1, 0.5, 0.967)."""

    def decay(a: float, c: float, r: float) -> float:
        return a * math.exp(-0.5 * r) + c

    for azimuth in (0.0, 20.0, 60.0, 300.0):
        r = 1 - min(azimuth, 360 - azimuth) / 90
        front, side = perp_neg_weights(looking([azimuth]), interpolated=True)
        assert front.item() == pytest.approx(decay(4, -2.426, r), abs=1e-3)
        assert side.item() == pytest.approx(decay(4, -2.426, 1 - r), abs=1e-3)
    for azimuth in (91.0, 135.0, 180.0, 200.0):
        r = 2 - min(azimuth, 360 - azimuth) / 90
        front, side = perp_neg_weights(looking([azimuth]), interpolated=True)
        assert front.item() == pytest.approx(decay(1, 0.967, r), abs=1e-3)
        assert side.item() == pytest.approx(decay(1, -0.606, r), abs=1e-3)


def test_a_view_does_not_avoid_itself_and_nothing_jumps() -> None:
    front, side = perp_neg_weights(looking([0.0, 90.0, 180.0]), interpolated=True)
    assert front[0].item() == pytest.approx(0.0, abs=1e-6)
    assert side[1].item() == pytest.approx(0.0, abs=1e-6)
    # The back avoids the front most: that is where the second face would be.
    assert front[2] > front[1] > front[0]
    assert bool((perp_neg_weights(looking([0.0, 100.0], 80.0), interpolated=True) == 0).all())
    around = perp_neg_weights(looking(torch.arange(0.0, 360.0, 0.25)), interpolated=True)
    assert bool((around >= -1e-6).all())
    assert around.diff(dim=1).abs().max() < 0.01


def test_negatives_are_the_front_and_the_side_for_every_view() -> None:
    given = texts()
    assert given.text is not None
    prompts = ViewPrompts(texts=given, interpolated=True)
    views = looking([10.0, 200.0])
    conds, weights = prompts.negatives(views)
    for index, cond in enumerate(conds):
        assert cond.text is not None
        assert torch.equal(cond.text, given.text[[index, index]])
    assert torch.equal(weights, perp_neg_weights(views, interpolated=True))


def test_prompts_that_read_alike_are_known() -> None:
    assert not ViewPrompts(texts=texts(), interpolated=True).are_one
    same = Conditioning(text=torch.ones(4, 2, 2))
    assert ViewPrompts(texts=same, interpolated=True).are_one
    with pytest.raises(ValueError, match="front, side, back, overhead"):
        ViewPrompts(texts=Conditioning(text=torch.ones(3, 2, 2)), interpolated=True)
