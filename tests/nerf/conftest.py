"""CUDA's kernels on the host: the very same files, built by the system's C++ compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nerf.cuda import launcher
from nerf.cuda.compiler import KERNEL_FOLDER, KernelSource
from nerf.hash_grid import cuda as hash_grid_cuda

HOST = Path(__file__).parent / "cuda" / "host"


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
    """Kernels by their source, each built once."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self._compiler = compiler
        self._folder = folder
        self._built: dict[KernelSource, HostKernels] = {}

    def __call__(self, source: KernelSource, device: torch.device) -> HostKernels:
        assert device.type == "cpu"
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
        for path in HOST.iterdir():
            shutil.copy(path, folder)
        library = folder / "kernels.so"
        command = [self._compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-x", "c++"]
        command += ["-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
        command += ["-Wno-unused-function"]
        command += [*source.macros, f'-DSOURCE="{source.name}"', "run.cpp", "-o", str(library)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return library


@pytest.fixture(scope="session")
def host_builds(tmp_path_factory: pytest.TempPathFactory) -> HostBuilds:
    """Builds CUDA kernels for the host. Skips where there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no g++ or clang++ here: the kernels are not built for the host")
    return HostBuilds(compiler, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_host(host_builds: HostBuilds, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostBuilds]:
    """The CUDA paths on tensors of the CPU, with kernels built for it."""
    monkeypatch.setattr(launcher, "kernels", host_builds)
    monkeypatch.setattr(hash_grid_cuda, "kernels", host_builds)
    yield host_builds
    host_builds.backward(False)
