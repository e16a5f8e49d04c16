"""The hash grid as a torch module: one interface over the backends that compute it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nerf.hash_grid import reference
from nerf.hash_grid.config import HashGridConfig

Backend = Literal["auto", "numba", "torch", "tinycudann"]


def choose_backend(backend: Backend, device: torch.device) -> tuple[Backend, str]:
    """The backend that computes tables on this device, and the reason in plain words."""
    return "torch", f"the torch reference, for tables on {device.type}"


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
        if backend not in get_args(Backend):
            raise ValueError(f"backend is {backend!r}; choose one of {get_args(Backend)}.")
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
        return reference.encode(points, self.table, self.config)
