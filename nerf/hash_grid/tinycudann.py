"""The hash grid of tiny-cuda-nn, on our flat table, where its torch bindings are installed.

Its versions differ, and a build may hold float16 where float32 is asked for: one that does not
agree with the reference on the device at hand is refused. Written from the interface of its
bindings and tested against a stand-in; not run on a GPU by this project yet.
"""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nerf.cuda import probe
from nerf.hash_grid import self_test
from nerf.hash_grid.config import HashGridConfig


@cache
def load() -> tuple[ModuleType | None, str]:
    """The module, or None, and a sentence on why."""
    try:
        import tinycudann  # pyright: ignore[reportMissingImports]  # no wheel exists to resolve
    except ImportError as error:
        return None, f"tinycudann is not installed ({error})"
    except OSError as error:  # it raises EnvironmentError, this one's alias, without a GPU
        return None, f"tinycudann is installed but does not load ({error})"
    return tinycudann, "tinycudann is installed"


@cache
def works(device: torch.device) -> tuple[bool, str]:
    """Whether it computes our encoding on a CUDA device, and a sentence on why.

    Where torch finds no device, whether it is installed.
    """
    module, reason = load()
    if module is None or not torch.cuda.is_available():
        return module is not None, reason
    # In a process of its own: a build that reaches for other memory would take this one with it.
    looked = probe.verdict("tinycudann", device)
    wrong = looked.fault if looked.known else self_test.fault(encode, device)
    return (True, reason) if wrong is None else (False, f"tinycudann is not used: {wrong}")


def settings(config: HashGridConfig) -> dict[str, Any]:
    """A grid of this shape in tiny-cuda-nn's own words."""
    return {
        "otype": "HashGrid",
        "n_levels": config.n_levels,
        "n_features_per_level": config.n_features,
        "log2_hashmap_size": config.log2_table_size,
        "base_resolution": config.base_resolution,
        "per_level_scale": config.per_level_scale,
        "interpolation": "Linear",
    }


@cache
def _encoding(config: HashGridConfig) -> Any:
    """tiny-cuda-nn's module of this shape. Its own parameters are never used."""
    module, reason = load()
    if module is None:
        raise RuntimeError(f'backend "tinycudann" is not available: {reason}; choose "auto".')
    for level in config.levels:
        # tiny-cuda-nn multiplies the resolution up in 32 bits and takes an overflow for a
        # small, dense level.
        if level.resolution**2 <= level.n_entries and level.resolution**3 >= 2**32:
            raise ValueError(
                f"log2_table_size {config.log2_table_size} with a resolution of "
                f"{level.resolution} overflows in tinycudann; lower log2_table_size to 21."
            )
    encoding = module.Encoding(3, settings(config), dtype=torch.float32)
    n_parameters = encoding.params.numel()
    if n_parameters != config.n_parameters:
        raise RuntimeError(
            f"this tinycudann lays out {n_parameters} parameters where {config.n_parameters} were "
            'expected; choose backend "torch".'
        )
    return encoding


def encode(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
    """The encoding of `reference.encode`, by tiny-cuda-nn; float32 on a CUDA device.

    points: [N, 3]; table: [config.n_parameters]. Returns [N, config.out_dim]. Raises RuntimeError
    where tinycudann does not load or has another layout.
    """
    if len(points) == 0:  # an empty launch is an error in CUDA
        return points.new_zeros(0, config.out_dim) + 0 * (points.sum() + table.sum())
    return torch.func.functional_call(_encoding(config), {"params": table}, (points,)).float()
