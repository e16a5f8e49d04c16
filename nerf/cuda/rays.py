"""Whether the march, the compositing and the occupancy grid run by our kernels on a CUDA device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from nerf.cuda import compositing, march, occupancy, probe
from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.launcher import kernels, require_device

__all__ = ["fault", "load", "usable"]


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rays of this device and dtype go through the kernels."""
    return device.type == "cuda" and dtype == torch.float32 and load(device)[0]


@cache
def load(device: torch.device) -> tuple[bool, str]:
    """Whether the kernels work on a CUDA device, and a sentence on why.

    The first call for a device compiles and loads them and compares them with plain torch, in a
    process of their own where that can be had: a kernel may take its process with it.
    """
    try:
        require_device(device)
        looked = probe.verdict("rays", device)
        if looked.fault is None:
            for source in (march.SOURCE, compositing.SOURCE, occupancy.SOURCE):
                kernels(source, device)
    except CudaKernelsUnavailable as error:
        return False, f"our CUDA kernels for rays cannot be had: {error}"
    wrong = looked.fault if looked.known else fault(device)
    if wrong is not None:
        return False, f"our CUDA kernels for rays are not used: {wrong}"
    return True, "our CUDA kernels for rays, which passed their self-test"


def fault(device: torch.device) -> str | None:
    """What is wrong with the kernels' results on a device, in plain words; None if nothing."""
    try:
        return _march_fault(device) or _composite_fault(device) or _occupancy_fault(device)
    except Exception as error:  # whatever the driver raises, it is a reason
        reason = (str(error).strip() or "no words").split("\n", 1)[0]
        return f"their self-test failed ({type(error).__name__}: {reason})"


_AABB = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def _march_fault(device: torch.device) -> str | None:
    # Late: nerf.sampling asks this module.
    from nerf.sampling import march_reference

    g = torch.Generator().manual_seed(0)
    occupied = torch.rand(8, 8, 8, generator=g) < 0.4
    o = 4 * torch.rand(300, 3, generator=g) - 2
    d = torch.nn.functional.normalize(0.6 * torch.randn(300, 3, generator=g) - o, dim=1)
    d[:20, 0] = 0  # within the plane of a slab, or never in it
    jitter = torch.rand(300, generator=g)
    expected = march_reference(o, d, aabb=_AABB, step_size=0.07, occupied=occupied, jitter=jitter)
    found = march.march(
        *(o.to(device), d.to(device), _AABB, 0.07),
        *(occupied.to(device), jitter.to(device), 0.0),
    )
    indices, t_starts, t_ends, offsets = (tensor.cpu() for tensor in found)
    if not torch.equal(offsets, expected.offsets):
        return "their self-test failed (the march finds other samples)"
    same = torch.equal(indices, expected.ray_indices)
    close = _near(t_starts, expected.t_starts) and _near(t_ends, expected.t_ends)
    return None if same and close else "their self-test failed (the march finds other intervals)"


def _composite_fault(device: torch.device) -> str | None:
    from nerf.compositing import composite_dense
    from nerf.sampling import march_reference

    g = torch.Generator().manual_seed(1)
    o = torch.tensor([0.1, 0.2, -3.0]).expand(40, 3)
    d = torch.nn.functional.normalize(0.4 * torch.randn(40, 3, generator=g) - o, dim=1)
    samples = march_reference(o, d, aabb=_AABB, step_size=0.1)
    density = 3 * torch.rand(len(samples), generator=g)
    values = torch.rand(len(samples), 5, generator=g)
    outputs: list[list[Tensor]] = []
    for ours in (False, True):
        where = device if ours else torch.device("cpu")
        one = density.to(where).requires_grad_()
        other = values.to(where).requires_grad_()
        if ours:
            lengths = (samples.t_ends - samples.t_starts).to(where)
            made = compositing.composite(
                *(one, other, lengths, samples.ray_indices.to(where), samples.offsets.to(where))
            )
        else:
            made = composite_dense(one, other, samples)
        loss = sum((part.square().sum() for part in made), start=one.new_zeros(()))
        grads = torch.autograd.grad(loss, (one, other))
        outputs.append([part.detach().cpu() for part in (*made, *grads)])
    close = all(_near(found, exact) for exact, found in zip(*outputs, strict=True))
    return None if close else "their self-test failed (the compositing gives other values)"


def _occupancy_fault(device: torch.device) -> str | None:
    remembered = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    cells = torch.tensor([0, 2, 2, 3], device=device)
    occupancy.remember(remembered, cells, torch.tensor([0.1, 5.0, 4.0, 0.0], device=device), 0.5)
    right = remembered.tolist() == [0.5, 2.0, 5.0, 2.0]
    return None if right else "their self-test failed (the occupancy grid remembers other values)"


def _near(found: Tensor, exact: Tensor) -> bool:
    return bool(torch.allclose(found, exact, rtol=1e-4, atol=1e-5))
