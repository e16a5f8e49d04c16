"""Compositing along packed rays on CUDA; `nerf.compositing` says what it gives."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf.cuda import launcher
from nerf.cuda.compiler import KernelSource

__all__ = ["SOURCE", "composite", "visible"]


class _Work(ctypes.Structure):
    """`Work` of compositing.cu, field by field."""

    tensors: dict[str, Tensor]
    """What the addresses are of: it lives as long as they may be used."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "density",
                "lengths",
                "values",
                "offsets",
                "ray_indices",
                "keep",
                "counts",
                "weights",
                "after",
                "accumulated",
                "transmittance",
                "grad_accumulated",
                "grad_transmittance",
                "grad_weights",
                "slope",
                "grad_density",
                "grad_values",
            )
        ),
        ("n_rays", ctypes.c_int64),
        ("n_samples", ctypes.c_int64),
        ("n_channels", ctypes.c_int32),
        ("transmittance_threshold", ctypes.c_float),
        ("alpha_threshold", ctypes.c_float),
    ]


SOURCE = KernelSource(name="compositing.cu", defines=(("WORK_BYTES", ctypes.sizeof(_Work)),))


def _work(numbers: dict[str, float], **tensors: Tensor) -> _Work:
    for tensor in tensors.values():
        assert tensor.is_contiguous()
    work = _Work(**numbers, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
    work.tensors = tensors
    return work


@torch.no_grad()
def visible(
    density: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    *,
    transmittance_threshold: float,
    alpha_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Which samples [S] a pixel can show, bool, and how many of each ray [R], int64.

    A sample counts while more light than the first threshold reaches it and its own opacity is
    not below the second.
    """
    n_rays = len(offsets) - 1
    keep = torch.zeros(len(density), dtype=torch.bool, device=density.device)
    counts = torch.empty(n_rays, dtype=torch.int64, device=density.device)
    numbers = {
        "n_rays": n_rays,
        "transmittance_threshold": transmittance_threshold,
        "alpha_threshold": alpha_threshold,
    }
    work = _work(
        numbers,
        density=density.contiguous(),
        lengths=lengths.contiguous(),
        offsets=offsets,
        keep=keep,
        counts=counts,
    )
    launcher.kernels(SOURCE, density.device).launch("visible", n_rays, 1, work)
    return keep, counts


def composite(
    density: Tensor, values: Tensor, lengths: Tensor, ray_indices: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(accumulated [R, C], transmittance [R], weights [S]), once differentiable.

    density, lengths: [S]; values: [S, C]; ray_indices: [S]; offsets: [R + 1]; float32.
    """
    return _Composite.apply(density, values, lengths, ray_indices, offsets)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        density: Tensor,
        values: Tensor,
        lengths: Tensor,
        ray_indices: Tensor,
        offsets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        density, values = density.detach().contiguous(), values.detach().contiguous()
        lengths = lengths.contiguous()
        n_rays, n_channels = len(offsets) - 1, values.shape[1]
        accumulated = values.new_empty(n_rays, n_channels)
        transmittance = density.new_empty(n_rays)
        weights, after = torch.empty_like(density), torch.empty_like(density)
        work = _work(
            {"n_rays": n_rays, "n_channels": n_channels},
            density=density,
            lengths=lengths,
            values=values,
            offsets=offsets,
            weights=weights,
            after=after,
            accumulated=accumulated,
            transmittance=transmittance,
        )
        kernels = launcher.kernels(SOURCE, density.device)
        kernels.launch("weigh", n_rays, 1, work)
        kernels.launch("accumulate", n_rays * n_channels, 1, work)
        ctx.save_for_backward(values, lengths, ray_indices, offsets, weights, after)
        return accumulated, transmittance, weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


@once_differentiable
def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    values, lengths, ray_indices, offsets, weights, after = ctx.saved_tensors
    accumulated, transmittance, to_weights = (grad.contiguous() for grad in grads)
    grad_density, grad_values = torch.empty_like(weights), torch.empty_like(values)
    n_rays, n_samples = len(offsets) - 1, len(weights)
    work = _work(
        {"n_rays": n_rays, "n_samples": n_samples, "n_channels": values.shape[1]},
        lengths=lengths,
        values=values,
        offsets=offsets,
        ray_indices=ray_indices.contiguous(),
        weights=weights,
        after=after,
        grad_accumulated=accumulated,
        grad_transmittance=transmittance,
        grad_weights=to_weights,
        slope=torch.empty_like(weights),
        grad_density=grad_density,
        grad_values=grad_values,
    )
    kernels = launcher.kernels(SOURCE, weights.device)
    kernels.launch("accumulate_backward", n_samples, 1, work)
    kernels.launch("weigh_backward", n_rays, 1, work)
    return grad_density, grad_values, None, None, None
