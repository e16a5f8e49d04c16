"""Adam's moments as named tensors for a checkpoint, and the check of what it is about to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["all_finite", "load_moments", "moments_of"]


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter>.<moment>` to tensor, the optimiser's own and not copies."""
    return {
        f"{index}.{key}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take what `moments_of` gave; parameters without moments begin anew."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def all_finite(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Whether neither the loss nor a gradient holds NaN or infinity: a bool scalar on the device.

    Where it is read the host waits, so that it is read together with what else a step wants.
    """
    squares = [p.grad.square().sum() for p in parameters if p.grad is not None]
    return torch.isfinite(torch.stack([loss.detach(), *squares])).all()
