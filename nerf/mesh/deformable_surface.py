"""A surface that can be trained: signed values and movable nodes of a grid of tetrahedra.

The second stage of Magic3D (arXiv 2211.10440, Section 4.2): every node of a deformable tetrahedral
grid holds a signed distance and a displacement, and both move by the gradient of what the extracted
mesh looks like. It starts as the iso-surface of a density.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from nerf.mesh.iso_surface import DensityGrid, EmptySurfaceError
from nerf.mesh.tetrahedra import march_tetrahedra, node_positions

__all__ = ["DeformableSurface", "signed_values"]

REACH = 2.0
"""Values are held within this many cells of the surface at the start: a surface that is to appear
or vanish elsewhere must cross no more than that."""

MOST_SHIFT = 0.5
"""Nodes move less than this share of a cell along each axis, so that they never change places."""


class DeformableSurface(nn.Module):
    """The zero level of `values`, in cells of the grid over [-1, 1]^3 and positive inside.

    Args:
        values: [R, R, R]; what is on the border counts as outside, so that the surface is closed.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        r = values.shape[0]
        if values.shape != (r, r, r) or r < 4:
            raise ValueError(f"values must be [R, R, R] with R at least 4, got {values.shape}.")
        self.values = nn.Parameter(values.detach().clone())
        self.shift = nn.Parameter(torch.zeros(r, r, r, 3, dtype=values.dtype))

    @property
    def resolution(self) -> int:
        """Nodes along an axis."""
        return self.values.shape[0]

    @property
    def spacing(self) -> float:
        """Side of a cell in world units."""
        return 2.0 / (self.resolution - 1)

    def mesh(self) -> tuple[Tensor, Tensor]:
        """(vertices [V, 3], faces [F, 3]): closed, outward, with gradients; both may be empty."""
        border = torch.ones_like(self.values, dtype=torch.bool)
        border[1:-1, 1:-1, 1:-1] = False
        values = torch.where(border, -1.0, self.values)
        nodes = node_positions(self.resolution, like=self.values)
        nodes = nodes + MOST_SHIFT * self.spacing * torch.tanh(self.shift)
        return march_tetrahedra(values, nodes)


def signed_values(grid: DensityGrid, threshold: float, *, min_volume_share: float = 0.02) -> Tensor:
    """Values [R, R, R] for a `DeformableSurface` whose surface is density == threshold.

    The log-density less that of the threshold, in units of its usual slope at the surface, so that
    a value is about the distance in cells; held within REACH. Pieces smaller than
    `min_volume_share` of the largest are left out and sealed cavities filled, as in
    `keep_large_components`. Raises EmptySurfaceError where nothing lies above the threshold.
    """
    height = grid.log_density.astype(np.float64) - np.log(threshold)
    inside = height > 0
    pieces, _ = ndimage.label(inside)  # pyright: ignore[reportGeneralTypeIssues] # stubs: int alone
    sizes = np.bincount(pieces.reshape(-1))[1:]
    if len(sizes) == 0:
        raise EmptySurfaceError(
            f"nothing of the field is denser than {threshold:.4g}: it is empty or fog."
        )
    large = np.flatnonzero(sizes >= min_volume_share * sizes.max()) + 1
    kept = np.asarray(ndimage.binary_fill_holes(np.isin(pieces, large)))
    beside = ndimage.binary_dilation(inside) & ~inside
    slopes = np.linalg.norm(np.stack(np.gradient(height)), axis=0)[beside]
    slope = max(float(np.median(slopes)), 1e-6) if len(slopes) else 1.0
    values = np.clip(height / slope, -REACH, REACH)
    values[inside & ~kept] = -REACH
    values[~inside & kept] = REACH
    return torch.from_numpy(values.astype(np.float32))
