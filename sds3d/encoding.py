"""Which code computes the hash grid of a run and follows its rays, and what a user is told of it.

Importing this module does not import torch.
"""

from __future__ import annotations

from .config import GenerateConfig
from .errors import ConfigError
from .optimize_config import OptimizeConfig

__all__ = ["check_encoding", "fallback", "uses_cuda_kernels"]


def check_encoding(config: GenerateConfig) -> str | None:
    """Whether `--encoding` can be had on the run's device, "cpu" or "cuda". Imports torch.

    Returns a line on why auto does not take the fast path of that device, None where it does.
    Raises ConfigError, with the remedy, for a choice that cannot be had.
    """
    name, device = config.optimize.encoding, config.device
    if config.optimize.target == "image" or name == "torch":
        return None
    if name == "numba" and device != "cpu":
        raise ConfigError(
            "--encoding is numba, which computes on the CPU: use --device cpu with it, "
            "or --encoding auto"
        )
    if name in ("cuda", "tinycudann") and device != "cuda":
        raise ConfigError(
            f"--encoding is {name}, which computes on CUDA, and the run on the CPU: use --encoding "
            "auto, or --device cuda where there is a device"
        )
    if name == "auto":
        return fallback(device, config.optimize.field.n_features)
    import torch

    from nerf.hash_grid import choose_backend

    try:
        choose_backend(name, torch.device(device), n_features=config.optimize.field.n_features)
    except RuntimeError as error:
        reason = str(error).partition("is not available: ")[2].partition("; choose")[0]
        raise ConfigError(
            f"--encoding is {name} but {reason or error}: use --encoding auto"
        ) from error
    return None


def fallback(device: str, n_features: int = 2) -> str | None:
    """Why auto takes a slower path on a device than its kernels would be; None if it does not.

    n_features: of the hash grid, which has kernels for each number.
    """
    if device == "cpu":
        return None
    import torch

    from nerf.cuda import rays
    from nerf.hash_grid import choose_backend

    backend, reason = choose_backend("auto", torch.device(device), n_features=n_features)
    if backend != "cuda":
        return f"the hash grid is computed by {backend}: {reason}"
    works, reason = rays.load(torch.device(device))
    return None if works else f"rays are followed by plain torch: {reason}"


def uses_cuda_kernels(options: OptimizeConfig) -> bool:
    """Whether rays, too, go through our CUDA kernels where those work."""
    return options.encoding in ("auto", "cuda")
