"""Which cells of the field's box hold matter, kept up to date while the field trains.

A thin layer over nerfacc's `OccGridEstimator` (Instant-NGP, arXiv 2201.05989, appendix C), which
works on every device, so that its randomness comes from a given generator and a run can be
repeated to the bit. On CUDA our own kernel does the remembering, where it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nerfacc
import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.cuda import occupancy as occupancy_cuda
from nerf.cuda import rays as ray_kernels
from nerf.sampling import Aabb

__all__ = ["OccupancyConfig", "OccupancyGrid"]


@dataclass(frozen=True, kw_only=True)
class OccupancyConfig:
    """resolution: cells along an axis. update_every: steps between updates. decay: an update's
    factor on the remembered density. density_threshold: a cell is occupied above this density
    (or above the mean over all cells, where that is lower). warmup_steps: until then an update
    visits every cell, afterwards a quarter of them at random and up to a quarter of the occupied.
    dilation: cells by which the occupied set grows on each side, so that matter next to a surface
    can still appear. cuda_kernels: off, a CUDA device is given plain torch even where ours works.

    In a run of a few hundred steps a decay of 0.95 every 16 steps never forgets the ball that the
    field started as: 0.7 every 8 steps rendered half the samples for the same images.
    """

    resolution: int = 32
    update_every: int = 8
    decay: float = 0.7
    density_threshold: float = 0.3
    warmup_steps: int = 256
    dilation: int = 0
    cuda_kernels: bool = True

    def __post_init__(self) -> None:
        for name, least in (("resolution", 1), ("update_every", 1), ("dilation", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")
        if self.density_threshold < 0:
            raise ValueError(f"density_threshold must not be negative: {self.density_threshold}")


class OccupancyGrid(nn.Module):
    """Remembered density per cell of a box, and the cells to march through.

    aabb: (x_min, y_min, z_min, x_max, y_max, z_max). Everything is occupied until the first
    update. The state (`occs`, `binaries`) is in state_dict, so that a run resumes as it was.
    """

    def __init__(self, aabb: Aabb, config: OccupancyConfig | None = None) -> None:
        super().__init__()
        self.config = config or OccupancyConfig()
        self.estimator = nerfacc.OccGridEstimator(
            torch.tensor(aabb), resolution=self.config.resolution, levels=1
        )
        self.estimator.get_buffer("binaries").fill_(True)

    @property
    def remembered_density(self) -> Tensor:
        """Density per cell as the updates left it, [X, Y, Z]."""
        return self.estimator.get_buffer("occs").view(3 * [self.config.resolution])

    @property
    def occupied(self) -> Tensor:
        """[X, Y, Z] bool over the box."""
        cells = self.estimator.get_buffer("binaries")
        if self.config.dilation:
            reach = self.config.dilation
            grown = functional.max_pool3d(cells[None].float(), 2 * reach + 1, 1, reach)
            cells = grown[0] > 0
        return cells[0]

    def update(
        self, step: int, density: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> None:
        """Look at the field again if `step` is a multiple of update_every.

        density: world points [N, 3] to [N]; asked at one random point of each visited cell, whose
        memory becomes max(decay * memory, density). generator: draws the points and the cells.
        A density that is not finite keeps its cell in sight, where the image will show it.
        """
        if step % self.config.update_every:
            return
        device = self.remembered_density.device
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())
        worth = 1 + self.config.density_threshold
        if self.config.cuda_kernels and ray_kernels.usable(device, torch.float32):
            self._update_by_kernels(step, density, torch.Generator(device).manual_seed(seed), worth)
            return

        def finite_density(points: Tensor) -> Tensor:
            with _deterministic(before):
                return density(points).nan_to_num(nan=worth, posinf=worth)[:, None]

        # After the warm-up a cell may be drawn twice, each time with a point of its own; among
        # threads it is chance which is remembered, unless torch is told to write in order.
        before = torch.are_deterministic_algorithms_enabled()
        # The estimator draws from torch's global generators; they are put back as they were.
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), _deterministic(True):
            torch.manual_seed(seed)
            self.estimator.train()
            self.estimator.update_every_n_steps(
                step=step,
                occ_eval_fn=finite_density,
                occ_thre=self.config.density_threshold,
                ema_decay=self.config.decay,
                warmup_steps=self.config.warmup_steps,
                n=self.config.update_every,
            )

    @torch.no_grad()
    def _update_by_kernels(
        self,
        step: int,
        density: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        worth: float,
    ) -> None:
        """The same rule, with numbers of the device's own generator.

        A cell that is drawn twice remembers the larger density, whatever the order of the threads.
        """
        occs, binaries = self.estimator.get_buffer("occs"), self.estimator.get_buffer("binaries")
        device, n_cells = occs.device, occs.numel()
        side = self.config.resolution
        if step < self.config.warmup_steps:
            cells = torch.arange(n_cells, device=device)
        else:
            share = n_cells // 4
            drawn = torch.randint(n_cells, (share,), generator=generator, device=device)
            held = binaries.flatten().nonzero()[:, 0]
            if share < len(held):
                held = held[torch.randint(len(held), (share,), generator=generator, device=device)]
            cells = torch.cat([drawn, held])
        corner = torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)
        within = torch.rand(len(cells), 3, generator=generator, device=device)
        low, high = self.estimator.get_buffer("aabbs")[0].split(3)
        points = low + (corner + within) / side * (high - low)
        found = density(points).nan_to_num(nan=worth, posinf=worth)
        occupancy_cuda.remember(occs, cells, found.float(), self.config.decay)
        binaries.copy_(
            (occs > occs.mean().clamp(max=self.config.density_threshold)).view_as(binaries)
        )


@contextmanager
def _deterministic(enabled: bool) -> Iterator[None]:
    """torch's deterministic algorithms on or off, and afterwards as they were."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
