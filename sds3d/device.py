"""The device that a run computes on. Importing this module does not import torch."""

from __future__ import annotations

from typing import Literal

from .config import DeviceName
from .errors import ConfigError


def resolve_device(name: DeviceName) -> Literal["cpu", "cuda"]:
    """The device meant by an option; "auto" is CUDA where torch finds a device. Imports torch.

    Raises ConfigError where CUDA is asked for and absent.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda but torch finds no CUDA device: use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
