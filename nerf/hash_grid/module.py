"""The hash grid as a torch module: one interface over the backends that compute it."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nerf.hash_grid import cuda, numba_cpu, reference, self_test, tinycudann
from nerf.hash_grid.config import HashGridConfig

Backend = Literal["auto", "cuda", "tinycudann", "numba", "torch"]
Chosen = Literal["cuda", "tinycudann", "numba", "torch"]

_ENCODE = {
    "cuda": cuda.encode,
    "numba": numba_cpu.encode,
    "torch": reference.encode,
    "tinycudann": tinycudann.encode,
}


def choose_backend(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    n_features: int = 2,
) -> tuple[Chosen, str]:
    """The backend that computes tables of this device, dtype and number of features an entry, and
    the reason in plain words.

    Raises ValueError for a backend that cannot, RuntimeError for one that is not installed or does
    not work. The first choice for a kind of table on a CUDA device compiles the kernels and tests
    them.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; choose one of {get_args(Backend)}.")
    if backend == "auto":
        return _fastest(device, dtype, n_features)
    if backend == "torch":
        return "torch", "asked for"
    fits, what = _fits(backend, device, dtype)
    # What is missing is said before what does not fit it.
    if backend == "cuda" or backend == "tinycudann":
        at = device if device.type == "cuda" else torch.device("cuda")
        if backend == "tinycudann":
            works, reason = tinycudann.works(at)
        else:
            # What no kernel is made for is refused below, and not compiled to see.
            made_for = dtype if dtype in cuda.POINT_DTYPES else torch.float32
            works, reason = cuda.load(at, n_features, made_for)
        if not works:
            raise RuntimeError(f'backend "{backend}" is not available: {reason}; choose "auto".')
    if not fits:
        raise ValueError(
            f'backend "{backend}" computes {what}, not {dtype} on {device.type}; '
            'choose "auto" or "torch".'
        )
    return backend, "asked for"


def _fits(
    backend: Literal["cuda", "tinycudann", "numba"], device: torch.device, dtype: torch.dtype
) -> tuple[bool, str]:
    """Whether a backend is made for tables of this device and dtype, and what it is made for."""
    if backend == "numba":
        fits = device.type == "cpu" and dtype in (torch.float32, torch.float64)
        return fits, "float32 and float64 tables on a CPU"
    if backend == "tinycudann":
        return device.type == "cuda" and dtype == torch.float32, "float32 tables on CUDA"
    fits = device.type == "cuda" and dtype in cuda.POINT_DTYPES
    return fits, "float16, float32 and float64 tables on CUDA"


def _fastest(device: torch.device, dtype: torch.dtype, n_features: int) -> tuple[Chosen, str]:
    if _fits("numba", device, dtype)[0]:
        return "numba", "compiled loops, the fastest on a CPU"
    reasons: list[str] = []
    if _fits("cuda", device, dtype)[0]:
        works, reason = cuda.load(device, n_features, dtype)
        if works:
            return "cuda", reason
        reasons.append(reason)
    if _fits("tinycudann", device, dtype)[0]:
        works, reason = tinycudann.works(device)
        if works:
            return "tinycudann", "; ".join([reason, *reasons])
        reasons.append(reason)
    if reasons:
        return "torch", f"plain torch on {device.type}: {'; '.join(reasons)}"
    return "torch", f"plain torch, the one backend for {dtype} on {device.type}"


class _Rounded(torch.autograd.Function):
    """A float32 table with the values that float16 has, and the gradient of the table itself."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        return table.half().to(table.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def backend_fault(backend: Chosen, device: torch.device) -> str | None:
    """What a backend's self-test on a device finds wrong, in plain words; None if nothing."""
    return self_test.fault(_ENCODE[backend], device)


class HashGrid(nn.Module):
    """Encodes points of the unit cube by trainable features on a pyramid of grids.

    config: the shape of the grid.
    backend: which code computes it; "auto" takes the fastest one for the table's device.
    generator: draws the initial features, U(-1e-4, 1e-4) as in arXiv 2201.05989, section 4;
        without one, a new generator with seed 0 does, so that two grids start alike.
    read_as: float16 encodes by the table rounded to it, while the parameter, its gradient and the
        encoding stay float32. Our CUDA kernels then read half as many bytes; the other backends
        compute the same from rounded numbers and win nothing.

    Parameter `table`: [config.n_parameters], flat, float32 (`.double()` gives float64).
    """

    def __init__(
        self,
        config: HashGridConfig,
        backend: Backend = "auto",
        generator: torch.Generator | None = None,
        read_as: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if read_as not in (torch.float32, torch.float16):
            raise ValueError(f"read_as is {read_as}; choose torch.float32 or torch.float16.")
        # An unknown name or a missing package shows here; devices may still change.
        on_cuda = backend in ("cuda", "tinycudann")
        at = torch.device("cuda" if on_cuda else "cpu")
        choose_backend(backend, at, torch.float32, config.n_features)
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.config = config
        self.backend: Backend = backend
        self.read_as = read_as
        table = torch.empty(config.n_parameters, device=generator.device)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))

    @property
    def out_dim(self) -> int:
        """Width of the encoding: n_levels * n_features."""
        return self.config.out_dim

    def forward(self, points: Tensor) -> Tensor:
        """Encode points.

        points: [N, 3] in [0, 1], on the table's device and of its dtype; for a float16 table also
            float32, in which they are told apart better.
        Returns [N, out_dim] in the table's dtype, differentiable to the table and to the points,
        and once more: a loss on the derivative by the points has gradients too. In memory it lies
        row by row, on CUDA by our kernels column by column.
        """
        name = self._checked_backend(points)
        if name == "cuda":
            return cuda.encode(points, self.table, self.config, self._stored)
        return _ENCODE[name](points, self._read(), self.config)

    def point_gradient(self, points: Tensor, grad: Tensor) -> Tensor:
        """The gradient at the points of the sum of grad * forward(points), for normals.

        points: [N, 3] in [0, 1], taken as constants; grad: [N, out_dim], the gradient that arrives
        at the encoding, itself differentiable where it was made with `create_graph=True`.
        Returns [N, 3], differentiable to the table and to grad.

        torch.autograd.grad(forward(points), points, grad, create_graph=True) gives the same
        values. But it needs points that require a gradient, and the backward pass of a loss then
        works out the gradients and second derivatives at them for nobody: twice the time.
        """
        name = self._checked_backend(points)
        if grad.shape != (len(points), self.out_dim):
            raise ValueError(
                f"grad must have the shape [{len(points)}, {self.out_dim}], not {list(grad.shape)}."
            )
        if name == "numba":
            return numba_cpu.point_gradient(points, self._read(), grad, self.config)
        if name == "cuda":
            return cuda.point_gradient(points, self.table, grad, self.config, self._stored)
        differentiable = torch.is_grad_enabled() and (
            self.table.requires_grad or grad.requires_grad
        )
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            encoded = _ENCODE[name](leaf, self._read(), self.config)
            (gradient,) = torch.autograd.grad(encoded, leaf, grad, create_graph=differentiable)
        return gradient

    @property
    def _stored(self) -> torch.dtype | None:
        """What our CUDA kernels read the table as; None is as it is."""
        rounds = self.read_as == torch.float16 and self.table.dtype == torch.float32
        return torch.float16 if rounds else None

    def _read(self) -> Tensor:
        """The table, rounded where it is to be read as float16."""
        return self.table if self._stored is None else _Rounded.apply(self.table)

    def _checked_backend(self, points: Tensor) -> str:
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points must have the shape [N, 3], not {list(points.shape)}.")
        finer = points.dtype == torch.float32 and self.table.dtype == torch.float16
        if points.dtype != self.table.dtype and not finer:
            raise TypeError(
                f"points are {points.dtype} but the table is {self.table.dtype}; convert one."
            )
        if points.device != self.table.device:
            raise ValueError(
                f"points are on {points.device} but the table is on {self.table.device}; move one."
            )
        table, n_features = self.table, self.config.n_features
        return choose_backend(self.backend, table.device, table.dtype, n_features)[0]
