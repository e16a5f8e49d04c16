"""Memory that did not suffice, however it is said: by Python, by torch, or through a library."""

from __future__ import annotations

__all__ = ["is_out_of_memory", "raise_shortage"]

_TEXTS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of plain RuntimeErrors: torch has a type of its own for its allocator of CUDA memory alone."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system or the device had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def raise_shortage(error: BaseException) -> None:
    """Raise MemoryError where `error`, or what it was raised for, is memory that did not suffice.

    For those who call everything that fails in reading a file a damaged file.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        if is_out_of_memory(cause):
            raise MemoryError(str(cause)) from error
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
