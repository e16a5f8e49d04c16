"""Small tensors that the host makes, on their way to the device that denoises.

The same few lines as `nerf.transfer`: neither package knows the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]

PINNED_FOR = frozenset({"cuda"})
"""Types of devices that copy from pinned memory while the host goes on."""


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; from the CPU's memory to CUDA's without waiting for the device.

    An ordinary copy waits until the device has done all that was asked of it before. One from
    pinned memory takes its place in the stream; torch keeps that memory until it is done.
    """
    if tensor.device.type == "cpu" and torch.device(device).type in PINNED_FOR:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
