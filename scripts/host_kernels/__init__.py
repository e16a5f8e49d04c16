"""CUDA's kernels on the host: the very same files, built by the system's C++ compiler.

For the tests, and for counting what a step launches where there is no GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

from nerf.cuda.compiler import KERNEL_FOLDER, KernelSource

__all__ = ["HostBuilds", "HostKernels", "system_compiler"]

HOST = Path(__file__).parent


def system_compiler() -> str | None:
    """A C++ compiler that knows half precision, None where there is none."""
    return shutil.which("g++") or shutil.which("clang++")


class HostKernels:
    """`nerf.cuda.launcher.Kernels` on the CPU's memory."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self.backward = False

    def launch(self, name: str, n_threads: int, n_rows: int, work: ctypes.Structure) -> None:
        self._library.run(
            getattr(self._library, name),
            ctypes.byref(work),
            ctypes.c_longlong(n_threads),
            n_rows,
            int(self.backward),
        )


class HostBuilds:
    """Kernels by their source, each built once, in a folder."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self._compiler = compiler
        self._folder = folder
        self._built: dict[KernelSource, HostKernels] = {}

    def __call__(self, source: KernelSource, device: torch.device) -> HostKernels:
        if source not in self._built:
            self._built[source] = HostKernels(self._build(source))
        return self._built[source]

    def backward(self, backward: bool) -> None:
        """Whether threads run in the opposite order."""
        for kernels in self._built.values():
            kernels.backward = backward

    def _build(self, source: KernelSource) -> Path:
        folder = self._folder / str(len(self._built))
        folder.mkdir()
        # Beside each other, so that the kernels include the host's device.cuh and not CUDA's.
        shutil.copy(KERNEL_FOLDER / source.name, folder)
        for name in ("device.cuh", "run.cpp"):
            shutil.copy(HOST / name, folder)
        library = folder / "kernels.so"
        command = [self._compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-x", "c++"]
        command += ["-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
        command += ["-Wno-unused-function"]
        command += [*source.macros, f'-DSOURCE="{source.name}"', "run.cpp", "-o", str(library)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0 or done.stderr:
            raise RuntimeError(f"{source.name} does not build for the host: {done.stderr}")
        return library
