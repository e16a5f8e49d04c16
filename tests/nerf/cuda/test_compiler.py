"""NVRTC: every kernel compiles for every architecture, and what it says when it cannot."""

import contextlib
import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nerf.cuda import compiler, compositing, launcher, march, occupancy
from nerf.cuda.compiler import KernelSource
from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.kernel_cache import KernelCache
from nerf.hash_grid import cuda

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
HASH_GRIDS = [
    cuda.source(2, torch.float32),
    cuda.source(1, torch.float16),
    cuda.source(2, torch.float16),
    cuda.source(8, torch.float16),
    cuda.source(4, torch.float32),
    cuda.source(2, torch.float64),
    cuda.source(2, torch.float16, torch.float32),
    cuda.source(8, torch.float16, torch.float32),
]
RAYS = {
    march.SOURCE: ("march_count", "march_fill"),
    compositing.SOURCE: ("visible", "weigh", "accumulate_backward", "weigh_backward"),
    occupancy.SOURCE: ("look", "remember"),
}


@pytest.fixture(scope="module")
def nvrtc() -> tuple[int, ...]:
    """The capabilities that NVRTC knows here."""
    try:
        return compiler.supported_capabilities()
    except CudaKernelsUnavailable as error:
        pytest.skip(f"{error}: the kernels are not compiled here")


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_kernels_compile(nvrtc: tuple[int, ...], capability: int) -> None:
    # All forms for one old and one new architecture, the common one for the others.
    sources = HASH_GRIDS if capability in (75, 90) else HASH_GRIDS[:1]
    for source in sources:
        code = compiler.compile_source(source, f"sm_{capability}")
        assert code.startswith(b"\x7fELF")
        for name in ("interpolate", "scatter", "point_grad"):
            assert name.encode() in code
            assert f"{name}_tangent".encode() in code
    for source, names in RAYS.items():
        code = compiler.compile_source(source, f"sm_{capability}")
        assert all(name.encode() in code for name in names)


def test_additions_are_vectors_where_the_architecture_has_them(nvrtc: tuple[int, ...]) -> None:
    def scatter(features: int, dtype: torch.dtype, capability: int) -> str:
        code = compiler.compile_source(cuda.source(features, dtype), f"compute_{capability}")
        text = code.decode()
        return text[text.index(".entry scatter(") :].split(".entry", 2)[1]

    assert scatter(2, torch.float32, 90).count("red.global.add.v2.f32") == 8
    assert scatter(8, torch.float32, 90).count("red.global.add.v4.f32") == 16
    assert scatter(8, torch.float16, 90).count("red.global.add.noftz.v4.f16x2") == 8
    assert scatter(4, torch.float16, 90).count("red.global.add.noftz.v2.f16x2") == 8
    assert scatter(2, torch.float16, 75).count("red.global.add.noftz.f16x2") == 8
    old = scatter(2, torch.float32, 75)
    assert "add.v2.f32" not in old
    assert old.count("add.f32") >= 16


def test_a_layout_that_differs_does_not_compile(nvrtc: tuple[int, ...]) -> None:
    source = cuda.source(2, torch.float32)
    macros = tuple((n, 8 + int(v) if n == "WORK_BYTES" else v) for n, v in source.defines)
    with pytest.raises(CudaKernelsUnavailable, match="lays out Work in another way"):
        compiler.compile_source(dataclasses.replace(source, defines=macros), "sm_80")


def test_code_for_newer_devices_is_portable_and_older_ones_are_refused() -> None:
    supported = (75, 80, 90)
    assert compiler.architecture_of((9, 0), supported) == "sm_90"
    assert compiler.architecture_of((8, 6), supported) == "compute_80"
    assert compiler.architecture_of((12, 1), supported) == "compute_90"
    with pytest.raises(CudaKernelsUnavailable, match=r"7\.5 or newer and the device has 7\.0"):
        compiler.architecture_of((7, 0), supported)


def test_what_is_kept_is_found_by_source_architecture_and_version() -> None:
    one, other = HASH_GRIDS[0], HASH_GRIDS[1]
    keys = {
        compiler.cache_key(one, "sm_90", (13, 0)),
        compiler.cache_key(other, "sm_90", (13, 0)),
        compiler.cache_key(one, "sm_80", (13, 0)),
        compiler.cache_key(one, "sm_90", (13, 1)),
    }
    assert len(keys) == 4
    assert compiler.cache_key(HASH_GRIDS[0], "sm_90", (13, 0)) in keys


def test_a_source_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def compile_source(source: KernelSource, architecture: str) -> bytes:
        made.append(architecture)
        return architecture.encode()

    monkeypatch.setattr(compiler, "compile_source", compile_source)
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (13, 0))
    kept = KernelCache(tmp_path)
    for _ in range(2):
        assert compiler.compiled(HASH_GRIDS[0], "sm_90", kept) == b"sm_90"
    assert made == ["sm_90"]
    path = kept.path(compiler.cache_key(HASH_GRIDS[0], "sm_90", (13, 0)))
    path.write_bytes(path.read_bytes()[:-2])  # torn
    assert compiler.compiled(HASH_GRIDS[0], "sm_90", kept) == b"sm_90"
    assert made == ["sm_90", "sm_90"]
    assert kept.read(path.stem) == b"sm_90"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_there_are_no_kernels() -> None:
    with pytest.raises(CudaKernelsUnavailable, match="torch finds no CUDA device"):
        launcher.require_device(torch.device("cuda"))
    assert cuda.load(torch.device("cuda")) == (
        False,
        "our CUDA kernels cannot be had: torch finds no CUDA device",
    )


class _Driver:
    """The calls of CUDA's driver that a launch makes."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []
        self.current = 0

    class Status(int):
        name = "CUDA_ERROR_INVALID_VALUE"

    def cuCtxGetCurrent(self) -> tuple[int, int]:
        return 0, self.current

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return 0, 100 + index

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:
        return 0, 1000 + device

    def cuCtxSetCurrent(self, context: int) -> tuple[int]:
        self.current = context
        return (0,)

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:
        return 0, f"{module}.{name.decode()}"

    def CUstream(self, address: int) -> int:
        return address

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:
        (work,) = (ctypes.c_void_p * 1).from_address(arguments[9])
        self.launched.append((*arguments[:9], ctypes.c_int64.from_address(work).value))
        return (self.Status(1 if arguments[1] > 1000 else 0),)


class _Numbers(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int64),)


def test_a_launch_goes_to_the_current_stream_of_the_device_with_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _Driver()
    entered: list[torch.device] = []

    def guard(device: torch.device) -> contextlib.AbstractContextManager[None]:
        entered.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: SimpleNamespace(cuda_stream=77))
    kernels = launcher._DeviceKernels.__new__(launcher._DeviceKernels)
    kernels.device, kernels._driver = torch.device("cuda", 3), driver
    kernels._functions, kernels._module = {}, "module"
    kernels.launch("scatter", 2 * compiler.BLOCK_SIZE + 1, 16, _Numbers(42))
    assert driver.launched == [
        ("module.scatter", 3, 16, 1, compiler.BLOCK_SIZE, 1, 1, 0, 77, 42),
    ]
    assert entered == [kernels.device]
    assert driver.current == 1103  # the primary context of the device, which a new thread lacks
    kernels.launch("scatter", 0, 16, _Numbers(42))
    assert len(driver.launched) == 1  # an empty launch is an error
    with pytest.raises(CudaKernelsUnavailable, match="cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"):
        kernels.launch("scatter", 1001 * compiler.BLOCK_SIZE, 1, _Numbers(42))
