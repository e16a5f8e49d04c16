"""What every test stands on: few threads, no network, caches of its own, and plain skip reasons."""

import ipaddress
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports these libraries: they read their environment once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
_caches = tempfile.mkdtemp(prefix="sds3d-tests-")
os.environ["HF_HOME"] = _caches

import pytest  # noqa: E402
import torch  # noqa: E402

if TYPE_CHECKING:
    from host_kernels import HostBuilds

ROOT = Path(__file__).resolve().parents[1]


@cache
def _missing_validator() -> str | None:
    """Why the Khronos glTF validator cannot run here, or None where it can."""
    node = shutil.which("node")
    if node is None:
        return "node is not installed: the Khronos glTF validator was left out"
    found = subprocess.run(
        [node, "-e", "require('gltf-validator')"], cwd=ROOT, capture_output=True, check=False
    )
    if found.returncode != 0:
        return "npm's gltf-validator is not installed (.ci/run does it): it was left out"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if item.get_closest_marker("node") and (reason := _missing_validator()):
        pytest.skip(reason)


def pytest_unconfigure() -> None:
    shutil.rmtree(_caches, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """The same number of threads on every machine, so that sums come out in the same order."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def host_builds(tmp_path_factory: pytest.TempPathFactory) -> "HostBuilds":
    """Builds CUDA kernels for the host. Skips where there is no C++ compiler."""
    from host_kernels import HostBuilds, system_compiler

    compiler = system_compiler()
    if compiler is None:
        pytest.skip("no g++ or clang++ here: the kernels are not built for the host")
    return HostBuilds(compiler, tmp_path_factory.mktemp("kernels"))


def _is_of_this_machine(address: str) -> bool:
    """Whether it is a number that a socket here can be bound to; a name would be looked up."""
    try:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[ipaddress.ip_address(address).version]
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except (OSError, ValueError):
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A connection to anything but this machine is an error: nothing here needs a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host != "localhost" and not _is_of_this_machine(host):
            raise AssertionError(f"a test tried to reach {host} over the network")
        connect(self, address)  # pyright: ignore[reportArgumentType]  # the stub's own alias

    socket.socket.connect = local_only
    yield
    socket.socket.connect = connect
