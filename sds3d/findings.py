"""One thing that the doctor found, and what its checks of the machine and of teachers share."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "in_gib", "total_memory"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. "missing" costs something but not the run; "problem" prevents it."""

    name: str
    status: Literal["ok", "missing", "problem"]
    text: str


def total_memory(device: str) -> int | None:
    """Bytes that there are on "cpu" or "cuda"; None where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def in_gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB"
