"""Volume rendering's quadrature along packed rays (NeRF, arXiv 2003.08934, equation 3).

    tau_i = density_i (t_end_i - t_start_i)
    T_i   = exp(-sum_{j < i} tau_j)
    w_i   = T_i (1 - exp(-tau_i))
    out   = sum_i w_i value_i,   and exp(-sum_j tau_j) of the background shines through.

`composite_dense` is the readable form, on rays padded to one length, through nerfacc's batched
functions, for every device. On the CPU `composite` runs the packed rays through a Numba kernel
with the gradient written out, which needs no padding and none of the small intermediate tensors; on
CUDA through kernels of our own, in the same way.
"""

from __future__ import annotations

from typing import Any

import nerfacc
import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf.cuda import compositing as compositing_cuda
from nerf.cuda import rays as ray_kernels
from nerf.sampling import RaySamples

__all__ = ["composite", "composite_dense"]


def composite(
    density: Tensor, values: Tensor, samples: RaySamples, *, cuda_kernels: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate values along rays.

    density: [S], values: [S, C], samples: S intervals of R rays. Returns (accumulated [R, C],
    transmittance [R] of the whole ray, render weights [S]), differentiable once to density and
    values. The weights of a ray and its transmittance add up to 1.
    cuda_kernels: off, a CUDA device is given plain torch even where the kernels work.
    """
    lengths = samples.t_ends - samples.t_starts
    same = density.dtype == values.dtype
    if cuda_kernels and same and ray_kernels.usable(density.device, density.dtype):
        return compositing_cuda.composite(
            density, values, lengths, samples.ray_indices, samples.offsets
        )
    if density.device.type == "cpu":
        return _Composite.apply(density, values, lengths, samples.offsets)
    return composite_dense(density, values, samples)


def composite_dense(
    density: Tensor, values: Tensor, samples: RaySamples
) -> tuple[Tensor, Tensor, Tensor]:
    """`composite` on rays padded with empty intervals, by nerfacc's batched functions."""
    n_rays, rays = samples.n_rays, samples.ray_indices
    counts = samples.offsets.diff()
    longest = int(counts.max().item()) if n_rays else 0
    if longest == 0:
        empty = values.new_zeros(n_rays, values.shape[1]) + 0 * values.sum()
        return empty, values.new_ones(n_rays) + 0 * density.sum(), density * 0
    rank = torch.arange(len(samples), device=rays.device) - samples.offsets[rays]

    def padded(packed: Tensor) -> Tensor:
        shape = (n_rays, longest, *packed.shape[1:])
        return packed.new_zeros(shape).index_put((rays, rank), packed)

    t_starts, t_ends, sigmas = padded(samples.t_starts), padded(samples.t_ends), padded(density)
    weights, _, _ = nerfacc.render_weight_from_density(t_starts, t_ends, sigmas)
    accumulated = (weights[..., None] * padded(values)).sum(dim=1)
    transmittance = torch.exp(-(sigmas * (t_ends - t_starts)).sum(dim=1))
    return accumulated, transmittance, weights[rays, rank]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, values: Tensor, lengths: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        density, values = density.detach().contiguous(), values.detach().contiguous()
        n_rays = offsets.shape[0] - 1
        accumulated = values.new_empty(n_rays, values.shape[1])
        transmittance = density.new_empty(n_rays)
        weights, after = torch.empty_like(density), torch.empty_like(density)
        _forward_kernel(
            *_arrays(density, values, lengths, offsets),
            *_arrays(accumulated, transmittance, weights, after),
        )
        ctx.save_for_backward(values, lengths, offsets, weights, after)
        return accumulated, transmittance, weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


@once_differentiable
def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    values, lengths, offsets, weights, after = ctx.saved_tensors
    grad_density, grad_values = torch.empty_like(weights), torch.empty_like(values)
    _backward_kernel(
        *_arrays(values, lengths, offsets, weights, after),
        *_arrays(*grads),  # to accumulated, transmittance, weights
        *_arrays(grad_density, grad_values),
    )
    return grad_density, grad_values, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.contiguous().numpy() for tensor in tensors]


@numba.njit(nogil=True, cache=True)
def _forward_kernel(density, values, lengths, offsets, accumulated, transmittance, weights, after):
    """`after` receives the transmittance behind each sample, T_{i+1}."""
    n_channels = values.shape[1]
    for ray in range(offsets.shape[0] - 1):
        accumulated[ray, :] = 0
        left = density.dtype.type(1)
        for i in range(offsets[ray], offsets[ray + 1]):
            tau = density[i] * lengths[i]
            weight = -left * np.expm1(-tau)
            left *= np.exp(-tau)
            weights[i] = weight
            after[i] = left
            for channel in range(n_channels):
                accumulated[ray, channel] += weight * values[i, channel]
        transmittance[ray] = left


@numba.njit(nogil=True, cache=True)
def _backward_kernel(
    values,
    lengths,
    offsets,
    weights,
    after,
    grad_accumulated,
    grad_transmittance,
    grad_weights,
    grad_density,
    grad_values,
):
    """With g_i = dL/dw_i: dL/dtau_i = g_i T_{i+1} - sum_{j > i} g_j w_j - T_end dL/dT_end."""
    n_channels = values.shape[1]
    for ray in range(offsets.shape[0] - 1):
        first, end = offsets[ray], offsets[ray + 1]
        if end == first:
            continue
        behind = grad_transmittance[ray] * after[end - 1]
        for i in range(end - 1, first - 1, -1):
            g = grad_weights[i]
            for channel in range(n_channels):
                g += grad_accumulated[ray, channel] * values[i, channel]
                grad_values[i, channel] = weights[i] * grad_accumulated[ray, channel]
            grad_density[i] = (g * after[i] - behind) * lengths[i]
            behind += g * weights[i]
