"""The hash grid as a torch module: one interface over the backends that compute it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nerf.hash_grid import numba_cpu, reference, tinycudann
from nerf.hash_grid.config import HashGridConfig

Backend = Literal["auto", "numba", "torch", "tinycudann"]

_ENCODE = {
    "numba": numba_cpu.encode,
    "torch": reference.encode,
    "tinycudann": tinycudann.encode,
}


def choose_backend(
    backend: Backend, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Literal["numba", "torch", "tinycudann"], str]:
    """The backend that computes tables of this device and dtype, and the reason in plain words.

    Raises ValueError for a backend that cannot, RuntimeError for one that is not installed.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; choose one of {get_args(Backend)}.")
    numba_fits = device.type == "cpu" and dtype in (torch.float32, torch.float64)
    tinycudann_fits = device.type == "cuda" and dtype == torch.float32
    if backend == "torch":
        return "torch", "asked for"
    if backend == "numba":
        if not numba_fits:
            raise ValueError(
                f'backend "numba" computes float32 and float64 tables on a CPU, not {dtype} on '
                f'{device.type}; choose "auto" or "torch".'
            )
        return "numba", "asked for"
    if backend == "tinycudann":
        module, reason = tinycudann.load()
        if module is None:
            raise RuntimeError(f'backend "tinycudann" is not available: {reason}; choose "auto".')
        if not tinycudann_fits:
            raise ValueError(
                f'backend "tinycudann" computes float32 tables on CUDA, not {dtype} on '
                f'{device.type}; choose "auto" or "torch".'
            )
        return "tinycudann", "asked for"
    if numba_fits:
        return "numba", "compiled loops, the fastest on a CPU"
    if tinycudann_fits:
        module, reason = tinycudann.load()
        if module is not None:
            return "tinycudann", reason
        return "torch", f"plain torch on {device.type}: {reason}"
    return "torch", f"plain torch, the one backend for {dtype} on {device.type}"


class HashGrid(nn.Module):
    """Encodes points of the unit cube by trainable features on a pyramid of grids.

    config: the shape of the grid.
    backend: which code computes it; "auto" takes the fastest one for the table's device.
    generator: draws the initial features, U(-1e-4, 1e-4) as in arXiv 2201.05989, section 4;
        without one, a new generator with seed 0 does, so that two grids start alike.

    Parameter `table`: [config.n_parameters], flat, float32 (`.double()` gives float64).
    """

    def __init__(
        self,
        config: HashGridConfig,
        backend: Backend = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        # An unknown name or a missing package shows here; devices may still change.
        choose_backend(backend, torch.device("cuda" if backend == "tinycudann" else "cpu"))
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.config = config
        self.backend: Backend = backend
        table = torch.empty(config.n_parameters, device=generator.device)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))

    @property
    def out_dim(self) -> int:
        """Width of the encoding: n_levels * n_features."""
        return self.config.out_dim

    def forward(self, points: Tensor) -> Tensor:
        """Encode points.

        points: [N, 3] in [0, 1], of the table's dtype and device.
        Returns [N, out_dim], row-major, differentiable to the table and to the points, and once
        more: a loss on the derivative by the points has gradients too.
        """
        name = self._checked_backend(points)
        return _ENCODE[name](points, self.table, self.config)

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
            return numba_cpu.point_gradient(points, self.table, grad, self.config)
        differentiable = torch.is_grad_enabled() and (
            self.table.requires_grad or grad.requires_grad
        )
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            encoded = _ENCODE[name](leaf, self.table, self.config)
            (gradient,) = torch.autograd.grad(encoded, leaf, grad, create_graph=differentiable)
        return gradient

    def _checked_backend(self, points: Tensor) -> str:
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points must have the shape [N, 3], not {list(points.shape)}.")
        if points.dtype != self.table.dtype:
            raise TypeError(
                f"points are {points.dtype} but the table is {self.table.dtype}; convert one."
            )
        if points.device != self.table.device:
            raise ValueError(
                f"points are on {points.device} but the table is on {self.table.device}; move one."
            )
        return choose_backend(self.backend, self.table.device, self.table.dtype)[0]
