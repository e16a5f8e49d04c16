"""A device that is not there: its tensors compute on the CPU, and every wait for it is counted.

A GPU works beside the host as long as the host asks for nothing back. Where it does (a number that
is read, a result whose size must be known, an ordinary copy), and how many kernels a step launches,
can be seen without a GPU: tensors of the simulated device say that they lie on torch's "meta"
device and hold CPU tensors inside; operations on them run on these, and are looked at on the way.
Our own kernels are those of the host's build. What this cannot show is how long anything takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import core.transfer
import nerf.occupancy
import nerf.transfer
import sds3d.supervision
from nerf.cuda import launcher, rays
from nerf.cuda.compiler import KernelSource
from nerf.hash_grid import cuda as hash_grid_cuda
from nerf.hash_grid import module as hash_grid_module

__all__ = ["DEVICE", "OnDevice", "Simulation", "simulated"]

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[1]
aten = torch.ops.aten

_READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
_SIZED = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
}
"""Operations whose result's size is known on the device alone."""
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
"""Operations that launch nothing."""


def _by_mask(indices: Any) -> bool:
    """Whether a tensor is indexed by a mask, whose true entries must be counted."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


class OnDevice(Tensor):
    """A tensor of the simulated device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        # Of torch's own machinery for such tensors, which its stubs leave out.
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor:
        raise AssertionError(f"{func} on the simulated device outside of a simulation")


class Simulation(TorchDispatchMode):
    """Computes for the device, and counts.

    Attributes:
        waits: What the host waited for, as "<what> in <file>" of this project, and how often.
        launches: Operations that launch a kernel, by torch's name or our kernel's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._pinned: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Begin to count anew."""
        self.waits.clear()
        self.launches.clear()
        self._pinned.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__.partition(".")[0]
        if name in ("pin_memory", "_pin_memory"):
            copy = args[0].clone()
            self._pinned[id(copy)] = copy
            return copy
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, OnDevice) for tensor in given)
        wanted = kwargs.get("device")
        asked = on_device if wanted is None else torch.device(wanted) == DEVICE
        self._count_waits(func, args, kwargs, on_device, asked)
        if wanted is not None and torch.device(wanted) == DEVICE:
            kwargs["device"] = torch.device("cpu")
        if on_device and func is not aten.copy_.default:
            # As CUDA does: only a number may come from the host.
            mixed = [t for t in given if not isinstance(t, OnDevice) and t.dim() > 0]
            assert not mixed, f"{func} takes tensors of two devices"
        plain_args, plain_kwargs = tree_map(
            lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs)
        )
        out = func(*plain_args, **plain_kwargs)
        if not asked or func in _READ:
            return out
        if not func.is_view and func not in _ALLOCATIONS:
            self.launches[str(func)] += 1
        out = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _count_waits(
        self, func: Any, args: Any, kwargs: dict[str, Any], on_device: bool, asked: bool
    ) -> None:
        if func is aten._to_copy.default and on_device != asked:
            pinned = id(args[0]) in self._pinned and kwargs.get("non_blocking", False)
            if on_device or not pinned:
                self._wait("copy to the host" if on_device else "copy to the device")
        elif func is aten.copy_.default:
            to, source = (isinstance(tensor, OnDevice) for tensor in args[:2])
            if to != source and (source or args[1].dim() > 0):
                self._wait("copy to the device" if to else "copy to the host")
        elif on_device and func in _READ:
            self._wait("number read")
        elif on_device and (func in _SIZED or (func in _INDEXED and _by_mask(args[1]))):
            self._wait("size")

    def _wait(self, what: str) -> None:
        files = [Path(frame.filename) for frame in traceback.extract_stack()]
        ours = [
            str(file.relative_to(ROOT))
            for file in files
            if any((ROOT / package) in file.parents for package in ("core", "nerf", "sds3d"))
        ]
        self.waits[f"{what} in {ours[-1] if ours else 'torch'}"] += 1


class _Calls(TorchFunctionMode):
    """Functions that make tensors of numbers send them to the device by a copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func is Tensor.new_tensor and isinstance(args[0], OnDevice):
            dtype = kwargs.get("dtype", args[0].dtype)
            return torch.tensor(args[1], dtype=dtype).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()  # as torch does, in one copy
        return func(*args, **kwargs)


class _Counted:
    """Kernels of the host's build, each launch counted."""

    def __init__(self, kernels: launcher.Kernels, simulation: Simulation) -> None:
        self._kernels = kernels
        self._simulation = simulation

    def launch(self, name: str, n_threads: int, n_rows: int, work: ctypes.Structure) -> None:
        self._simulation.launches[f"ours.{name}"] += 1
        self._kernels.launch(name, n_threads, n_rows, work)


class _HostGenerators:
    """torch with generators of the host alone, for a module that wants one of its device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def Generator(*_device: object) -> torch.Generator:
        return torch.Generator()


@contextlib.contextmanager
def simulated(
    builds: Callable[[KernelSource, torch.device], launcher.Kernels],
) -> Iterator[Simulation]:
    """Within the block `DEVICE` computes as a CUDA device with our kernels would, and is watched.

    builds: our kernels for the CPU's memory.
    """
    simulation = Simulation()
    # The package deletes this name of its module.
    optimizers = sys.modules["torch.optim.optimizer"]

    def kernels(source: KernelSource, device: torch.device) -> launcher.Kernels:
        return _Counted(builds(source, torch.device("cpu")), simulation)

    patches: list[tuple[Any, str, Any]] = [
        (launcher, "kernels", kernels),
        (hash_grid_cuda, "kernels", kernels),
        (rays, "usable", lambda device, _: device == DEVICE),
        (hash_grid_module, "choose_backend", lambda *_: ("cuda", "simulated")),
        (nerf.occupancy, "torch", _HostGenerators()),
        (optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]),
        (sds3d.supervision, "ONE_CALL_ON", {"meta"}),
        *((package, "PINNED_FOR", {"meta"}) for package in (core.transfer, nerf.transfer)),
    ]
    with contextlib.ExitStack() as held:
        for where, name, replacement in patches:
            held.enter_context(mock.patch.object(where, name, replacement))
        held.enter_context(_Calls())
        held.enter_context(simulation)
        yield simulation
