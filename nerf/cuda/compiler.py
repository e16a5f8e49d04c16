"""CUDA C++ to machine code by NVRTC; neither a C++ compiler nor a GPU is needed for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.kernel_cache import KernelCache

__all__ = [
    "BLOCK_SIZE",
    "KERNEL_FOLDER",
    "KernelSource",
    "architecture_of",
    "cache_key",
    "compile_source",
    "compiled",
    "nvrtc_version",
    "supported_capabilities",
]

KERNEL_FOLDER = Path(__file__).with_name("kernels")
BLOCK_SIZE = 256
"""Threads of a block, in all kernels."""

_HEADER = "device.cuh"
_REMEDY = "pip install 'sds3d[cuda]'"


@dataclass(frozen=True, kw_only=True)
class KernelSource:
    """A file of kernels and the macros that it is compiled with.

    name: of the file in `KERNEL_FOLDER`. defines: macros and what they stand for.
    """

    name: str
    defines: tuple[tuple[str, str | int], ...] = ()

    @property
    def macros(self) -> list[str]:
        """The macros as options of a compiler, those of every source among them."""
        defines = (("BLOCK_SIZE", BLOCK_SIZE), *self.defines)
        return [f"-D{name}={value}" for name, value in defines]

    def texts(self) -> tuple[str, str]:
        """The file's text and that of the header which it includes."""
        return (
            (KERNEL_FOLDER / self.name).read_text(encoding="utf-8"),
            (KERNEL_FOLDER / _HEADER).read_text(encoding="utf-8"),
        )


@cache
def _nvrtc() -> Any:
    """The bindings of NVRTC, with its library found."""
    try:
        # Compiled, without stubs.
        from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise CudaKernelsUnavailable(
            f"NVRTC's Python bindings are not installed ({error}): {_REMEDY}"
        ) from error
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:  # each version of the bindings raises another class
        reason = str(error).split("\n", 1)[0]
        raise CudaKernelsUnavailable(f"NVRTC is not installed ({reason}): {_REMEDY}") from error
    return nvrtc


def _call(function: Any, *arguments: Any) -> Any:
    """What an NVRTC function returns beside its status; CudaKernelsUnavailable if it failed."""
    status, *rest = function(*arguments)
    if int(status) != 0:
        raise CudaKernelsUnavailable(f"NVRTC failed: {function.__name__} gave {status.name}")
    return rest[0] if rest else None


def nvrtc_version() -> tuple[int, int]:
    """Major and minor version of NVRTC. Raises CudaKernelsUnavailable where there is none."""
    status, major, minor = _nvrtc().nvrtcVersion()
    if int(status) != 0:
        raise CudaKernelsUnavailable(f"NVRTC does not say its version ({status.name})")
    return int(major), int(minor)


def supported_capabilities() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for, such as 90 for 9.0, rising."""
    nvrtc = _nvrtc()
    return tuple(sorted(_call(nvrtc.nvrtcGetSupportedArchs)))


def architecture_of(capability: tuple[int, int], supported: Sequence[int]) -> str:
    """What to compile for: the device's own machine code, or portable code that it can run.

    capability: of the device, major and minor. Raises CudaKernelsUnavailable for a device older
    than all that NVRTC knows.
    """
    wanted = 10 * capability[0] + capability[1]
    if wanted in supported:
        return f"sm_{wanted}"
    below = [known for known in supported if known < wanted]
    if not below:
        raise CudaKernelsUnavailable(
            f"this NVRTC compiles for compute capability {min(supported) / 10} or newer and the "
            f"device has {wanted / 10}"
        )
    # The driver turns it into machine code when it is loaded.
    return f"compute_{max(below)}"


def compile_source(source: KernelSource, architecture: str) -> bytes:
    """Compile for "sm_90" (machine code) or "compute_90" (PTX).

    Raises CudaKernelsUnavailable, with the compiler's words, where that fails.
    """
    nvrtc = _nvrtc()
    text, header = source.texts()
    program = _call(
        nvrtc.nvrtcCreateProgram,
        text.encode(),
        source.name.encode(),
        1,
        [header.encode()],
        [_HEADER.encode()],
    )
    try:
        options = [word.encode() for word in _options(source, architecture)]
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            raise CudaKernelsUnavailable(
                f"NVRTC does not compile {source.name} for {architecture}: {_log(nvrtc, program)}"
            )
        if architecture.startswith("sm_"):
            code = bytearray(_call(nvrtc.nvrtcGetCUBINSize, program))
            # The bindings write into the memory of a bytes object, and take nothing else.
            written = bytes(code)
            _call(nvrtc.nvrtcGetCUBIN, program, written)
        else:
            written = bytes(bytearray(_call(nvrtc.nvrtcGetPTXSize, program)))
            _call(nvrtc.nvrtcGetPTX, program, written)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return written


def _options(source: KernelSource, architecture: str) -> list[str]:
    return [f"--gpu-architecture={architecture}", "--std=c++17", *source.macros]


def _log(nvrtc: Any, program: Any) -> str:
    size = _call(nvrtc.nvrtcGetProgramLogSize, program)
    log = bytes(bytearray(size))
    _call(nvrtc.nvrtcGetProgramLog, program, log)
    return log.rstrip(b"\0\n").decode(errors="replace")


def cache_key(source: KernelSource, architecture: str, version: tuple[int, int]) -> str:
    """Name of what these files become by this compiler for this architecture."""
    document = [*source.texts(), _options(source, architecture), list(version)]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:32]


def compiled(source: KernelSource, architecture: str, kept: KernelCache) -> bytes:
    """`compile_source`, or what it gave an earlier time."""
    key = cache_key(source, architecture, nvrtc_version())
    code = kept.read(key)
    if code is None:
        code = compile_source(source, architecture)
        kept.write(key, code)
    return code
