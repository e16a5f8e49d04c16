"""Time the CUDA kernels on a GPU: the encoding, the MLP behind it, rendering, and whole steps.

    python scripts/bench_cuda.py [--json] [--only PART ...] [--repeats N]

Parts: encoding, mlp, render, toybox, unet. The encoding has L = 16, F = 2, T = 2^19 and a growth of
1.4473, and takes 2^16, 2^18 and 2^20 points, uniform in the cube or in order along rays; forward,
and forward with the gradient to the table; by our kernels with float32 and float16 tables, by the
torch reference, and by tinycudann where it is importable. `mlp` is the encoding and two linear
layers, 64 wide, forward and backward. `render` is a view of 128 x 128 rays forward and backward.
`toybox` is a step of the `fast` preset with the embedded teacher. `unet` is a step with a UNet
of Stable Diffusion 2.1's size, float16 and of random weights, on a field of latents (no
autoencoder), beside that UNet alone.

Everything is warm, timed by CUDA events, and the median of the repeats. "traffic" is what the
algorithm must read and write at least once for each point, in GB/s and as a share of what a copy
reaches on the same card; more than 1 means that caches answer. "error" is the largest difference
from the reference in float64, as a share of the largest value. With --json the last line is an
object with the rows. Without a CUDA device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import Backend, HashGrid, HashGridConfig, choose_backend, reference, tinycudann
from nerf.rendering import RenderConfig, render

PARTS = ("encoding", "mlp", "render", "toybox", "unet")
Part = Literal["encoding", "mlp", "render", "toybox", "unet"]
POINTS = (2**16, 2**18, 2**20)
GRID = HashGridConfig(
    n_levels=16, n_features=2, log2_table_size=19, base_resolution=16, per_level_scale=1.4473
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the benchmark; the defaults are those that figures are given for."""

    device: torch.device
    repeats: int = 30
    points: tuple[int, ...] = POINTS
    grid: HashGridConfig = GRID
    hidden_dim: int = 64
    side: int = 128


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: what was timed, on how many points or rays, and its median."""

    part: str
    what: str
    points: int
    order: str
    ms: float
    traffic_gb_s: float | None = None
    error: float | None = None


def median_ms(run: Callable[[], object], setting: Setting) -> float:
    """Median milliseconds of warm repeats, by CUDA events; by the clock on the CPU."""
    on_cuda = setting.device.type == "cuda"
    for _ in range(min(5, setting.repeats)):
        run()
    times: list[float] = []
    for _ in range(setting.repeats):
        if on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def copy_gb_s(setting: Setting) -> float:
    """What a copy of 1 GiB reads and writes in a second."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source), setting) / 1e6


def cloud(n_points: int, order: str, device: torch.device) -> Tensor:
    """Points [N, 3] of the unit cube: uniform, or in runs of 64 along rays through it."""
    g = torch.Generator().manual_seed(0)
    if order == "uniform":
        return torch.rand(n_points, 3, generator=g).to(device)
    ends = torch.rand(2, max(1, n_points // 64), 1, 3, generator=g)
    along = torch.linspace(0, 1, 64)[:, None]
    return torch.lerp(ends[0], ends[1], along).reshape(-1, 3).to(device)


Variant = tuple[str, Backend, torch.dtype]


def variants(device: torch.device) -> Iterator[Variant]:
    """What can be timed on the device."""
    if device.type != "cuda":
        yield "numba float32", "numba", torch.float32
        yield "torch float32", "torch", torch.float32
        return
    yield "cuda float32", "cuda", torch.float32
    yield "cuda float16", "cuda", torch.float16
    yield "torch float32", "torch", torch.float32
    if tinycudann.works(device)[0]:
        yield "tinycudann float32", "tinycudann", torch.float32


def bench_encoding(setting: Setting) -> Iterator[Row]:
    """Forward, and forward with the gradient to the table."""
    config, device = setting.grid, setting.device
    for n_points in setting.points:
        for order in ("uniform", "rays"):
            points = cloud(n_points, order, device)
            for name, backend, dtype in variants(device):
                grid = HashGrid(config, backend).to(device=device, dtype=dtype)
                with torch.no_grad():
                    grid.table.uniform_(-1, 1)
                grad = torch.randn(len(points), config.out_dim, device=device).to(dtype)
                size = grid.table.element_size()
                gathered = 8 * config.out_dim * size
                once = len(points) * (12 + gathered + config.out_dim * size)
                error = encoding_error(grid, points, config)

                def forward(grid: HashGrid = grid, points: Tensor = points) -> object:
                    with torch.no_grad():
                        return grid(points)

                def both(
                    grid: HashGrid = grid, points: Tensor = points, grad: Tensor = grad
                ) -> object:
                    grid.table.grad = None
                    return grid(points).backward(grad)

                for what, run, moved in (
                    ("forward", forward, once),
                    # The gradient is read, the table's cleared, and its additions read and write.
                    ("forward+backward", both, 2 * once + len(points) * gathered),
                ):
                    ms = median_ms(run, setting)
                    yield Row(
                        part="encoding",
                        what=f"{what}, {name}",
                        points=len(points),
                        order=order,
                        ms=ms,
                        traffic_gb_s=moved / ms / 1e6,
                        error=error if what == "forward" else None,
                    )


def encoding_error(grid: HashGrid, points: Tensor, config: HashGridConfig) -> float:
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
        for name, backend, dtype in variants(device):
            grid = HashGrid(setting.grid, backend)
            layers = [nn.Linear(grid.out_dim, setting.hidden_dim), nn.ReLU()]
            network = nn.Sequential(grid, *layers, nn.Linear(setting.hidden_dim, 4))
            network.to(device=device, dtype=dtype)

            def run(network: nn.Module = network, points: Tensor = points) -> object:
                network.zero_grad()
                return network(points).sum().backward()

            ms = median_ms(run, setting)
            yield Row(part="mlp", what=name, points=len(points), order="rays", ms=ms)


def bench_render(setting: Setting) -> Iterator[Row]:
    """A view of the field as it begins, forward and backward, with kernels and without."""
    device = setting.device
    c2w = orbit_c2w(torch.tensor([30.0]), torch.tensor([15.0]), torch.tensor([2.9]), device=device)
    rays_o, rays_d = camera_rays(c2w, 40.0, setting.side, setting.side)
    for name, backend, dtype in variants(device):
        if dtype != torch.float32:
            continue
        field = RadianceField(FieldConfig(hash_grid=setting.grid), backend=backend).to(device)
        config = RenderConfig(cuda_kernels=backend == "cuda")

        def run(field: RadianceField = field, config: RenderConfig = config) -> object:
            field.zero_grad()
            return render(field, None, rays_o, rays_d, config).rgb.sum().backward()

        ms = median_ms(run, setting)
        rays = setting.side**2
        yield Row(part="render", what=name, points=rays, order="rays", ms=ms)


def bench_toybox(setting: Setting) -> Iterator[Row]:
    """A step of the `fast` preset at mid-run."""
    from sds3d.optimize import Optimization, StepClock
    from sds3d.presets import generate_config
    from sds3d.teachers import load_teacher

    device = setting.device.type
    teacher = load_teacher("toybox", "cuda" if device == "cuda" else "cpu")
    for name, backend, dtype in variants(setting.device):
        if dtype != torch.float32:
            continue
        config = generate_config("fast", prompt="a red mushroom", device=device)
        config = dataclasses.replace(
            config, optimize=dataclasses.replace(config.optimize, encoding=backend)
        )
        loop = Optimization(config, teacher)
        while loop.step < config.optimize.steps // 2:
            loop.advance(StepClock())
        rays = loop.advance(StepClock()).rays

        def run(loop: Optimization = loop) -> object:
            return loop.advance(StepClock())

        ms = median_ms(run, dataclasses.replace(setting, repeats=min(setting.repeats, 100)))
        yield Row(part="toybox", what=f"step, {name}", points=rays, order="rays", ms=ms)


def unet_of_sd21(device: torch.device) -> Callable[[Tensor], Tensor]:
    """A UNet of Stable Diffusion 2.1's shape, of random weights, asked twice as guidance does."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    # The library's signature says less than it takes: a number of heads for each level.
    heads: Any = (5, 10, 20, 20)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=heads,
            use_linear_projection=True,
        )
    nn.Module.to(unet, dtype=torch.float16)
    unet.requires_grad_(False).eval()
    text = torch.randn(2, 77, 1024, device=device, dtype=torch.float16)
    time_step = torch.tensor(500, device=device)

    def ask(latents: Tensor) -> Tensor:
        with torch.no_grad():
            answer = unet(latents.half().expand(2, -1, -1, -1), time_step, text).sample
        uncond, cond = answer.float().chunk(2)
        return uncond + 7.5 * (cond - uncond)

    return ask


def bench_unet(
    setting: Setting, teacher: Callable[[torch.device], Callable[[Tensor], Tensor]] = unet_of_sd21
) -> Iterator[Row]:
    """The teacher alone, and a step: render latents, ask it, backward, Adam."""
    device = setting.device
    ask = teacher(device)
    side = 64
    latents = torch.randn(1, 4, side, side, device=device)
    ms = median_ms(lambda: ask(latents), setting)
    yield Row(part="unet", what="teacher alone", points=side**2, order="", ms=ms)
    c2w = orbit_c2w(torch.tensor([30.0]), torch.tensor([15.0]), torch.tensor([2.9]), device=device)
    rays_o, rays_d = camera_rays(c2w, 40.0, side, side)
    for name, backend, dtype in variants(device):
        if dtype != torch.float32:
            continue
        shape = FieldConfig(hash_grid=setting.grid, color_channels=4, bounded_colors=False)
        field = RadianceField(shape, backend=backend).to(device)
        adam = torch.optim.Adam(field.parameters(), lr=1e-2, fused=device.type == "cuda")
        config = RenderConfig(cuda_kernels=backend == "cuda")

        def step(
            field: RadianceField = field,
            adam: torch.optim.Adam = adam,
            config: RenderConfig = config,
        ) -> object:
            adam.zero_grad()
            shown = render(field, None, rays_o, rays_d, config).images
            noise = torch.randn_like(shown)
            noisy = (0.5 * shown + 0.75**0.5 * noise).detach()
            shown.backward(0.01 * (ask(noisy) - noise))
            return adam.step()

        ms = median_ms(step, setting)
        yield Row(part="unet", what=f"step, {name}", points=side**2, order="rays", ms=ms)


BENCHES: dict[Part, Callable[[Setting], Iterator[Row]]] = {
    "encoding": bench_encoding,
    "mlp": bench_mlp,
    "render": bench_render,
    "toybox": bench_toybox,
    "unet": bench_unet,
}


def line_of(row: Row, copy: float) -> str:
    """A row of the table."""
    text = f"{row.part:9s}{row.what:38s}{row.points:9d} {row.order:8s}{row.ms:10.3f} ms"
    if row.traffic_gb_s is not None:
        text += f"{row.traffic_gb_s:9.0f} GB/s ({row.traffic_gb_s / copy:.2f})"
    return text if row.error is None else f"{text}   error {row.error:.1e}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the CUDA kernels on a GPU.")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to time")
    parser.add_argument("--repeats", type=int, default=30, help="repeats of each")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch finds no CUDA device: there is nothing to time here", file=sys.stderr)
        return 2
    setting = Setting(device=torch.device("cuda"), repeats=args.repeats)
    try:
        _, reason = choose_backend("cuda", setting.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    copy = copy_gb_s(setting)
    print(f"{card}, torch {torch.__version__}; {reason}; a copy moves {copy:.0f} GB/s")
    rows: list[Row] = []
    for part in args.only:
        for row in BENCHES[part](setting):
            print(line_of(row, copy), flush=True)
            rows.append(row)
    if args.json:
        document = {
            "device": card,
            "torch": torch.__version__,
            "copy_gb_s": round(copy, 1),
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
