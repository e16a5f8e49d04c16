"""Proof that a teacher stayed as it was: freeze it, and compare its hash before and after."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["freeze", "parameter_sha256"]


def freeze(module: nn.Module) -> None:
    """Put `module` into evaluation mode, its parameters out of reach of any gradient."""
    module.eval().requires_grad_(False)


def parameter_sha256(module: nn.Module) -> str:
    """SHA-256 of every parameter and saved buffer: name, dtype, shape and bits, on any device.

    Two modules have the same hash exactly when their state dicts are bit for bit the same.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()
