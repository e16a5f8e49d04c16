"""Distances between sample sets: MMD, (sliced) Wasserstein, Chamfer, Frechet; and mode weights.

Samples are [N, ...] and are flattened to [N, D]; everything is differentiable in them, and takes
the dtype and device that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.mixture import GaussianMixture

__all__ = [
    "chamfer_distance",
    "frechet_distance",
    "mmd_squared",
    "mode_weights",
    "sliced_wasserstein",
    "wasserstein_1d",
]


def mmd_squared(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """The unbiased estimate of MMD^2 (Gretton et al., JMLR 13, 2012, Lemma 6), a scalar.

    The kernel is the mean over `bandwidths` h of exp(-|x - y|^2 / (2 h^2)). A U-statistic: no
    sample is compared with itself, so the estimate has no bias, and is negative at times.

    Raises ValueError for fewer than two samples on a side and for a bandwidth that is not positive.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"MMD needs two samples a side at least, got {len(x)} and {len(y)}.")
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"MMD needs positive bandwidths, got {list(bandwidths)}.")
    x, y = x.flatten(1), y.flatten(1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # Not cdist: its gradient at distance 0, on the diagonal, is not a number.
        squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        squared = squared.clamp(min=0)
        widths = torch.tensor(bandwidths, dtype=a.dtype, device=a.device)[:, None, None]
        return torch.exp(-squared / (2 * widths.square())).mean(0)

    def within(a: Tensor) -> Tensor:
        matrix = kernel(a, a)
        return (matrix.sum() - matrix.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def wasserstein_1d(x: Tensor, y: Tensor, power: float = 2.0) -> Tensor:
    """W_p^p between the rows' empirical distributions, x [..., N] and y [..., M], to [...].

    The optimal coupling is monotone: the integral over levels of |F_x^-1 - F_y^-1|^p, exact for
    N and M of any size.
    """
    n, m = x.shape[-1], y.shape[-1]
    x, y = x.sort(-1).values, y.sort(-1).values
    if n == m:
        return (x - y).abs().pow(power).mean(-1)
    # Both quantile functions are constant between the levels i/n and j/m; integers do not round.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    left = levels[:-1]
    weights = (levels.diff().to(x.dtype) / (n * m)).to(x.device)
    gaps = x[..., (left // m).to(x.device)] - y[..., (left // n).to(x.device)]
    return (gaps.abs().pow(power) * weights).sum(-1)


def sliced_wasserstein(
    x: Tensor, y: Tensor, generator: torch.Generator, *, directions: int = 128
) -> Tensor:
    """Root of the mean over random directions of W_2^2 of the projections, a scalar.

    In one dimension it is W_2 itself. Bonneel et al., "Sliced and Radon Wasserstein barycenters
    of measures", 2015.
    """
    x, y = x.flatten(1), y.flatten(1)
    shape = (x.shape[1], directions)
    slopes = torch.randn(shape, generator=generator, device=generator.device, dtype=x.dtype)
    slopes = slopes.to(x.device)
    slopes = slopes / slopes.norm(dim=0)
    return wasserstein_1d((x @ slopes).T, (y @ slopes).T).mean().sqrt()


def chamfer_distance(x: Tensor, y: Tensor) -> Tensor:
    """Between point clouds x [B, N, D] and y [B, M, D], to [B].

    The mean squared distance of x's points to the nearest of y's, plus the other way round; blind
    to the order of the points. Gradients flow through the nearest pairs alone.
    """
    squared = (x[:, :, None] - y[:, None]).square().sum(-1)
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of the Gaussians with the samples' moments, a scalar.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2) (FID, arXiv 1706.08500, Eq. 6),
    in float64; on a network's features it is its FID.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    cov_x, cov_y = torch.atleast_2d(torch.cov(x.T)), torch.atleast_2d(torch.cov(y.T))
    values, axes = torch.linalg.eigh(cov_x)
    root = (axes * values.clamp(min=0).sqrt()) @ axes.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return apart + cov_x.trace() + cov_y.trace() - 2 * cross


def mode_weights(x: Tensor, mixture: GaussianMixture) -> Tensor:
    """The share of the samples x [N, D] that each of the mixture's K components explains [K].

    The mean posterior of the component, without noise: for samples of the mixture its expectation
    is the mixture's own weights. Components need variance.
    """
    ones = torch.ones(len(x), device=x.device, dtype=mixture.means.dtype)
    noised = mixture.noised(ones, torch.zeros_like(ones))
    return noised.log_component_posterior(x.to(mixture.means.dtype)).exp().mean(0)
