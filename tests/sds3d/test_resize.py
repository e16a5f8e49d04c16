"""Pictures shown to a teacher of another size: nothing of them is passed over."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sds3d.optimize import Teacher, resized
from sds3d.resize import at_size


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_what_is_not_made_smaller_is_what_it_was_to_the_bit() -> None:
    for side in (16, 7):
        x = images(side)
        assert torch.equal(at_size(x, (16, 16)), F.interpolate(x, (16, 16), mode="bilinear"))
    assert torch.equal(at_size(images(16), (16, 16)), images(16))


def test_stripes_finer_than_the_new_pixels_become_grey() -> None:
    stripes = ((torch.arange(64) + 1) % 4 < 2).float().expand(1, 3, 64, 64)
    small = at_size(stripes, (8, 8))[..., 1:-1]
    assert float((small - 0.5).abs().max()) < 0.02
    assert float((F.interpolate(stripes, (8, 8), mode="bilinear") - 0.5).abs().max()) > 0.4


def test_every_pixel_is_seen_and_gets_a_gradient() -> None:
    x = images(64).requires_grad_()
    small = at_size(x, (8, 8))
    assert small.mean().item() == pytest.approx(x.mean().item(), abs=0.02)
    small.sum().backward()
    assert x.grad is not None
    assert float(x.grad.min()) > 0
    # Far from the borders each counts alike.
    inner = x.grad[:, :, 16:-16, 16:-16]
    assert float(inner.max() - inner.min()) < 0.01 * float(inner.mean())
    assert math.isclose(float(x.grad.sum()), small.numel(), rel_tol=1e-4)


def test_the_loop_shows_its_teacher_pictures_that_way() -> None:
    teacher = cast(Teacher, SimpleNamespace(image_size=8))
    assert torch.equal(resized(images(32), teacher, latent=False), at_size(images(32), (8, 8)))
