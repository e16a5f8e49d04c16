"""Of scripts/bench_cuda.py: the encoding, the MLP behind it, and a view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cuda_bench.measure import Row, Setting, timed
from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import Backend, HashGrid, HashGridConfig, reference, tinycudann
from nerf.rendering import RenderConfig, render

__all__ = ["bench_encoding", "bench_mlp", "bench_render", "cloud", "view_rays", "ways"]

SIZES = {torch.float32: 4, torch.float16: 2}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute the encoding.

    table, encoded: dtypes that are read, and written with all gradients. backend None is
    tiny-cuda-nn's own module in its native precision, which is no backend of ours.
    """

    name: str
    backend: Backend | None
    table: torch.dtype = torch.float32
    encoded: torch.dtype = torch.float32

    @property
    def trains(self) -> bool:
        """Whether a run can choose it: what it trains is float32."""
        return self.backend is not None and self.encoded == torch.float32

    def grid(self, config: HashGridConfig, device: torch.device) -> nn.Module:
        if self.backend is None:
            return NativeTinycudann(config)
        read_as = self.table if self.encoded == torch.float32 else torch.float32
        return HashGrid(config, self.backend, read_as=read_as).to(device, self.encoded)

    def field(self, setting: Setting, **shape: Any) -> RadianceField:
        assert self.backend is not None
        config = FieldConfig(hash_grid=setting.grid, **shape)
        field = RadianceField(config, backend=self.backend, table_dtype=self.table)
        return field.to(setting.device)

    @property
    def render_config(self) -> RenderConfig:
        return RenderConfig(cuda_kernels=self.backend == "cuda")


def ways(device: torch.device) -> Iterator[Way]:
    """What can be timed on the device."""
    half = torch.float16
    if device.type != "cuda":
        yield Way(name="numba float32", backend="numba")
        yield Way(name="numba float32 read as float16", backend="numba", table=half)
        yield Way(name="torch float32", backend="torch")
        return
    yield Way(name="cuda float32", backend="cuda")
    yield Way(name="cuda float32 read as float16", backend="cuda", table=half)
    yield Way(name="cuda float16", backend="cuda", table=half, encoded=half)
    yield Way(name="torch float32", backend="torch")
    if tinycudann.works(device)[0]:
        yield Way(name="tinycudann float32", backend="tinycudann")
    if tinycudann.load()[0] is not None:
        yield Way(name="tinycudann float16", backend=None, table=half, encoded=half)


class NativeTinycudann(nn.Module):
    """tiny-cuda-nn's encoding with the precision that it was made for."""

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        module, reason = tinycudann.load()
        if module is None:
            raise RuntimeError(reason)
        self.config = config
        self.out_dim = config.out_dim
        settings = tinycudann.settings(config)
        self.encoding: Any = module.Encoding(3, settings, dtype=torch.float16)

    @property
    def table(self) -> nn.Parameter:
        return self.encoding.params

    def forward(self, points: Tensor) -> Tensor:
        return self.encoding(points)


def cloud(n_points: int, order: str, device: torch.device) -> Tensor:
    """Points [N, 3] of the unit cube: uniform, or in runs of 64 along rays through it."""
    g = torch.Generator().manual_seed(0)
    if order == "uniform":
        return torch.rand(n_points, 3, generator=g).to(device)
    ends = torch.rand(2, max(1, n_points // 64), 1, 3, generator=g)
    along = torch.linspace(0, 1, 64)[:, None]
    return torch.lerp(ends[0], ends[1], along).reshape(-1, 3).to(device)


def bench_encoding(setting: Setting) -> Iterator[Row]:
    """Forward, and forward with the gradient to the table."""
    config, device = setting.grid, setting.device
    for n_points in setting.points:
        for order in ("uniform", "rays"):
            points = cloud(n_points, order, device)
            for way in ways(device):
                yield from _encoding_rows(setting, config, points, order, way)


def _encoding_rows(
    setting: Setting, config: HashGridConfig, points: Tensor, order: str, way: Way
) -> Iterator[Row]:
    grid: Any = way.grid(config, setting.device)
    with torch.no_grad():
        grid.table.uniform_(-1, 1)
    grad = torch.randn(len(points), config.out_dim, device=setting.device).to(way.encoded)
    read, written = SIZES[way.table], SIZES[way.encoded]
    forward_bytes = len(points) * (12 + config.out_dim * (8 * read + written))
    # The gradient is read, and each addition reads and writes.
    backward_bytes = len(points) * (12 + config.out_dim * (written + 2 * 8 * written))

    def forward() -> object:
        with torch.no_grad():
            return grid(points)

    def both() -> object:
        grid.table.grad = None
        return grid(points).backward(grad)

    for what, run, moved in (
        ("forward", forward, forward_bytes),
        ("forward+backward", both, forward_bytes + backward_bytes),
    ):
        about = {"part": "encoding", "what": f"{what}, {way.name}", "points": len(points)}
        row = timed(setting, run, order=order, **about)
        if row.ms is not None:
            row = replace(row, traffic_gb_s=moved / row.ms / 1e6)
            if what == "forward":
                row = replace(row, error=encoding_error(grid, points, config))
        yield row


def encoding_error(grid: Any, points: Tensor, config: HashGridConfig) -> float:
    """Largest error of a few thousand encodings, as a share of the largest value."""
    with torch.no_grad():
        few = points[:4096]
        exact = reference.encode(few.double(), grid.table.double(), config)
        return float((grid(few).double() - exact).abs().max() / exact.abs().max())


def bench_mlp(setting: Setting) -> Iterator[Row]:
    """The encoding and two layers, forward and backward."""
    device = setting.device
    for n_points in setting.points:
        points = cloud(n_points, "rays", device)
        for way in ways(device):
            grid = way.grid(setting.grid, device)
            layers = [nn.Linear(setting.grid.out_dim, setting.hidden_dim), nn.ReLU()]
            layers.append(nn.Linear(setting.hidden_dim, 4))
            network = nn.Sequential(grid, *(layer.to(device, way.encoded) for layer in layers))

            def run(network: nn.Module = network, points: Tensor = points) -> object:
                network.zero_grad()
                return network(points).sum().backward()

            about = {"part": "mlp", "what": way.name, "points": len(points), "order": "rays"}
            yield timed(setting, run, **about)


def view_rays(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rays of one view, [1, side, side, 3]."""
    c2w = orbit_c2w(30.0, 15.0, 2.9, device=device)
    return camera_rays(c2w, 40.0, side, side)


def bench_render(setting: Setting) -> Iterator[Row]:
    """A view of the field as it begins, forward and backward, with kernels and without."""
    rays_o, rays_d = view_rays(setting.side, setting.device)
    for way in ways(setting.device):
        if not way.trains:
            continue
        field = way.field(setting)

        def run(field: RadianceField = field, config: RenderConfig = way.render_config) -> object:
            field.zero_grad()
            return render(field, None, rays_o, rays_d, config).rgb.sum().backward()

        about = {"part": "render", "what": way.name, "points": setting.side**2, "order": "rays"}
        yield timed(setting, run, **about)
