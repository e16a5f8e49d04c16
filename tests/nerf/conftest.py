"""CUDA's kernels on the host, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from host_kernels import HostBuilds
from nerf.cuda import launcher
from nerf.hash_grid import cuda as hash_grid_cuda


@pytest.fixture
def on_host(host_builds: HostBuilds, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostBuilds]:
    """The CUDA paths on tensors of the CPU, with kernels built for it."""
    monkeypatch.setattr(launcher, "kernels", host_builds)
    monkeypatch.setattr(hash_grid_cuda, "kernels", host_builds)
    yield host_builds
    host_builds.backward(False)
