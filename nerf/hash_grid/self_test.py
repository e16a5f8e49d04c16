"""Whether a backend computes what the reference does, on the machine at hand: a few milliseconds.

What is compiled on a user's machine, or was built there, is asked before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nerf.hash_grid import reference
from nerf.hash_grid.config import HashGridConfig

__all__ = ["Encode", "fault"]

Encode = Callable[[Tensor, Tensor, HashGridConfig], Tensor]

# Two dense and two hashed levels.
_CONFIG = HashGridConfig(n_levels=4, log2_table_size=10, base_resolution=5, per_level_scale=1.6)
_TOLERANCES = {torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-10}
"""By the table's dtype; a float16 one's gradient is added up in float16."""
_NAMES = (
    "the encoding",
    "the gradient at the points",
    "the gradient at the table",
    "the table's gradient of a loss on normals",
    "the encoding's gradient of a loss on normals",
)


def fault(
    encode: Encode,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    n_features: int = 2,
    read_as: torch.dtype | None = None,
) -> str | None:
    """What is wrong with encodings by `encode` on a device, in plain words, or None.

    Values, first derivatives, and the second ones that a loss on normals needs, against the
    reference in float64 on the CPU. The table is of `dtype` and n_features, of numbers that
    `read_as` holds.
    """
    config = replace(_CONFIG, n_features=n_features)
    points, table, grad, probe = _problem(config)
    table, grad = table.to(read_as or dtype).to(dtype), grad.to(dtype)
    if dtype == torch.float64:
        points, probe = points.double(), probe.double()
    try:
        given = (t.to(device) for t in (points, table, grad, probe))
        found = _derivatives(encode, config, *given)
        found = [tensor.cpu().double() for tensor in found]
    except Exception as error:  # whatever a foreign library raises, it is a reason
        reason = (str(error).strip() or "no words").split("\n", 1)[0]
        return f"its self-test failed ({type(error).__name__}: {reason})"
    wide = (tensor.double() for tensor in (points, table, grad, probe))
    expected = _derivatives(reference.encode, config, *wide)
    for name, ours, exact in zip(_NAMES, found, expected, strict=True):
        error = float((ours - exact).abs().max() / exact.abs().max())
        if not error < _TOLERANCES[dtype]:
            return f"its self-test failed ({name} is off by {error:.1g} of its largest value)"
    return None


def _problem(config: HashGridConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points off the cells' faces, where derivatives jump; a table; gradients that arrive."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(400, 3, generator=g)
    inside = torch.ones(len(points), dtype=torch.bool)
    for level in config.levels:
        fraction = (level.scale * points + 0.5).frac()
        inside &= ((fraction > 1e-2) & (fraction < 1 - 1e-2)).all(dim=1)
    points = points[inside]
    table = torch.randn(config.n_parameters, generator=g)
    grad = torch.randn(len(points), config.out_dim, generator=g)
    return points, table, grad, torch.randn(len(points), 3, generator=g)


def _derivatives(
    encode: Encode,
    config: HashGridConfig,
    points: Tensor,
    table: Tensor,
    grad: Tensor,
    probe: Tensor,
) -> list[Tensor]:
    points, table, grad = (t.detach().requires_grad_() for t in (points, table, grad))
    encoded = encode(points, table, config)
    first = torch.autograd.grad(encoded, (points, table), grad, create_graph=True)
    second = torch.autograd.grad(first[0], (table, grad), probe)
    return [tensor.detach() for tensor in (encoded, *first, *second)]
