"""Penalties on what a field looks like from within, each a scalar to be minimised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerf.transfer import to_device

__all__ = ["normal_smoothness", "opacity_entropy", "orientation_loss"]


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy of pixels' opacities in bits, 0 for a sharp silhouette, at most 1.

        H(o) = -o log2 o - (1 - o) log2 (1 - o)

    It asks each pixel to be clear or opaque without preferring either, where a penalty on the
    opacity itself makes objects vanish. opacity: any shape, in [0, 1]; values within 1e-5 of an
    end are held there, and receive no gradient.
    """
    o = opacity.clamp(1e-5, 1 - 1e-5)
    return -(o * o.log2() + (1 - o) * (1 - o).log2()).mean()


def orientation_loss(weights: Tensor, normals: Tensor, directions: Tensor, n_rays: int) -> Tensor:
    """Visible surfaces face the camera (Ref-NeRF, arXiv 2112.03907, equation 11).

        R_o = sum_i w_i max(0, n_i . d_i)^2, averaged over n_rays rays

    weights: [S]; normals: [S, 3], outward, with their graph; directions: [S, 3] from the camera
    on. The weights are constants here (DreamFusion, arXiv 2209.14988, appendix A.2): otherwise
    hiding a surface would pay as well as turning it.
    """
    away = (normals * directions).sum(dim=-1).clamp(min=0)
    return (weights.detach() * away.square()).sum() / max(1, n_rays)


def normal_smoothness(
    normals_at: Callable[[Tensor], Tensor],
    positions: Tensor,
    weights: Tensor,
    *,
    distance: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared difference of normals at points and at random neighbours, in [0, 4].

        sum_i w_i |n(x_i) - n(x_i + distance u_i)|^2 / sum_i w_i,   u_i standard normal

    normals_at: world points [N, 3] to unit normals [N, 3] with their graph, called once for both
    sets. positions: [S, 3]; weights: [S], constants here. Zero where there are no samples.
    """
    if not len(positions):
        return positions.new_zeros(())
    shift = torch.randn(
        positions.shape, generator=generator, device=generator.device, dtype=positions.dtype
    )
    neighbours = positions.detach() + distance * to_device(shift, positions.device)
    here, there = normals_at(torch.cat([positions.detach(), neighbours])).chunk(2)
    share = weights.detach() / weights.detach().sum().clamp(min=1e-8)
    return (share * (here - there).square().sum(dim=-1)).sum()
