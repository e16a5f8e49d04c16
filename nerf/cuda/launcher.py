"""Kernels on a device: loaded once, launched on the stream that torch is using.

A launch allocates nothing and waits for nothing, so that it can be captured in a CUDA graph once
its kernels are loaded; all it needs travels in one structure by value.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Protocol

import torch

from nerf.cuda.compiler import (
    BLOCK_SIZE,
    KernelSource,
    architecture_of,
    compiled,
    supported_capabilities,
)
from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.kernel_cache import KernelCache, default_folder

__all__ = ["Kernels", "kernels", "require_device"]


class Kernels(Protocol):
    """The kernels of one source, ready to run."""

    def launch(self, name: str, n_threads: int, n_rows: int, work: ctypes.Structure) -> None:
        """Run a kernel for n_threads along x and n_rows along y; `work` is its one argument."""
        ...


def require_device(device: torch.device) -> None:
    """Raise CudaKernelsUnavailable unless kernels can be thought of on this device."""
    if not torch.cuda.is_available():
        raise CudaKernelsUnavailable("torch finds no CUDA device")
    if torch.version.hip is not None:
        raise CudaKernelsUnavailable("this torch is built for ROCm and not for CUDA")
    if device.type != "cuda":
        raise CudaKernelsUnavailable(f"they run on CUDA and not on {device.type}")


def kernels(source: KernelSource, device: torch.device) -> Kernels:
    """The kernels of `source` on a CUDA device, compiled and loaded at the first call.

    Raises CudaKernelsUnavailable where that cannot be done.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    return _loaded(source, index)


@cache
def _loaded(source: KernelSource, index: int) -> _DeviceKernels:
    return _DeviceKernels(source, torch.device("cuda", index))


_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""


def _call(function: Any, *arguments: Any) -> Any:
    try:
        status, *rest = function(*arguments)
    except RuntimeError as error:  # where the bindings find no driver to load
        raise CudaKernelsUnavailable(f"the CUDA driver cannot be called: {error}") from error
    if int(status) == _OUT_OF_MEMORY:
        # Not for good, and what makes a run go on with less.
        raise torch.OutOfMemoryError(f"{function.__name__}: out of memory")
    if int(status) != 0:
        raise CudaKernelsUnavailable(f"the CUDA driver failed: {function.__name__}: {status.name}")
    return rest[0] if rest else None


class _DeviceKernels:
    def __init__(self, source: KernelSource, device: torch.device) -> None:
        require_device(device)
        if torch.cuda.is_current_stream_capturing():
            # Another class of error than where kernels cannot be had: it is not for good.
            raise RuntimeError(
                f"{source.name} is not loaded yet, and cannot be while a CUDA graph is captured: "
                "run the step once before"
            )
        architecture = architecture_of(
            torch.cuda.get_device_capability(device), supported_capabilities()
        )
        code = compiled(source, architecture, KernelCache(default_folder()))
        try:
            # Compiled, without stubs.
            from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue]
        except (ImportError, RuntimeError) as error:
            raise CudaKernelsUnavailable(f"cuda-bindings does not load: {error}") from error

        self.device = device
        self._driver = driver
        self._functions: dict[str, Any] = {}
        with torch.cuda.device(device):
            self._enter()
            # Kept for as long as the process lives, like everything that is loaded.
            self._module = _call(driver.cuModuleLoadData, code)

    def launch(self, name: str, n_threads: int, n_rows: int, work: ctypes.Structure) -> None:
        if n_threads == 0 or n_rows == 0:  # an empty launch is an error in CUDA
            return
        driver = self._driver
        with torch.cuda.device(self.device):
            self._enter()
            function = self._functions.get(name)
            if function is None:
                function = _call(driver.cuModuleGetFunction, self._module, name.encode())
                self._functions[name] = function
            # The driver copies the structure before it returns.
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(work))
            _call(
                driver.cuLaunchKernel,
                function,
                *(-(-n_threads // BLOCK_SIZE), n_rows, 1),
                *(BLOCK_SIZE, 1, 1),
                0,
                driver.CUstream(torch.cuda.current_stream(self.device).cuda_stream),
                ctypes.addressof(arguments),
                0,
            )

    def _enter(self) -> None:
        """Make torch's context this thread's own: a new thread, as of a backward pass, has none."""
        driver = self._driver
        if int(_call(driver.cuCtxGetCurrent)) == 0:
            device = _call(driver.cuDeviceGet, self.device.index)
            _call(driver.cuCtxSetCurrent, _call(driver.cuDevicePrimaryCtxRetain, device))
