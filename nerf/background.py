"""Plain backgrounds, drawn anew for each view.

A background that changes from step to step makes transparency visible to whatever judges the
image, so that a field cannot hide behind a colour it knows (DreamFusion, arXiv 2209.14988,
appendix A.2). White, grey and coloured ones all occur, so that white objects are seen as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.transfer import to_device

__all__ = ["BackgroundConfig", "random_background"]


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """How often each sort of background is drawn; what remains of 1 is any RGB colour."""

    white_probability: float = 0.4
    grey_probability: float = 0.3

    def __post_init__(self) -> None:
        for name in ("white_probability", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.white_probability + self.grey_probability > 1 + 1e-9:
            raise ValueError("white_probability + grey_probability exceed 1; lower one of them")


def random_background(
    n_views: int,
    generator: torch.Generator,
    config: BackgroundConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One colour per view in [0, 1], [n_views, 3]: white, a uniform grey, or any RGB colour.

    Each view takes four numbers of the generator whatever its sort, so that a change of the
    probabilities does not shift what later draws receive.
    """
    config = config or BackgroundConfig()
    draw = torch.rand(n_views, 4, generator=generator, device=generator.device, dtype=dtype)
    draw = to_device(draw, device)
    sort, colour = draw[:, :1], draw[:, 1:]
    white = sort < config.white_probability
    grey = sort < config.white_probability + config.grey_probability
    background = torch.where(grey, colour[:, :1].expand(-1, 3), colour)
    return torch.where(white, torch.ones_like(background), background)
