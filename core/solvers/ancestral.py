"""What every solver that draws noise in its steps refuses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["require_denoising"]


def require_denoising(
    solver: str,
    t: Tensor,
    s: Tensor,
    generator: torch.Generator | None,
    *,
    otherwise: str = "take DDIM with eta=0",
) -> torch.Generator:
    """The generator of a step from t to s, each [B], that draws noise.

    Raises ValueError without a generator and where s >= t: fresh noise only makes up for what
    denoising took. `otherwise` says what to do instead.
    """
    if generator is None:
        raise ValueError(f"{solver} draws noise. Pass a generator, or {otherwise}.")
    if bool((s >= t).any()):
        remedy = otherwise[:1].upper() + otherwise[1:]
        raise ValueError(f"{solver} cannot run toward the noise. {remedy} to invert.")
    return generator
