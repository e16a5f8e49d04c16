"""Pictures at another size, the same way wherever a run shows them to its teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["at_size"]


def at_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] at the size (h, w), bilinearly; the same values where it is theirs.

    Made smaller they are averaged over what a new pixel covers (`antialias`): two neighbours of
    each new pixel alone would leave most of what was rendered unseen, and without a gradient.
    """
    smaller = images.shape[-2] > size[0] or images.shape[-1] > size[1]
    return F.interpolate(images, size, mode="bilinear", antialias=smaller)
