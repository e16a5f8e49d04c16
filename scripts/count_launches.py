"""Count what one step of a run launches, and where the host waits for the device, without a GPU.

    python scripts/count_launches.py [--teacher toybox|none] [--json]

A few steps of the `fast` preset on a simulated device (scripts/simulated_device.py), with our CUDA
kernels built for the host, so that a C++ compiler is needed. "launches" are kernels as torch asks
for them, one for each of its operations (a library may use more), and ours; "waits" are places
where the host cannot go on before the device is done. Both for a step without an update of the
occupancy grid, for one with it, and for one whose update visits a part of the cells, as all do
after the grid's warm-up. "teacher network" is the part of the launches that `--cuda-graphs` replays
as one. Neither says how long anything takes. `--teacher none` asks a stand-in that launches one
kernel. With --json the last line is an object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from host_kernels import HostBuilds, system_compiler
from nerf.occupancy import OccupancyConfig
from sds3d.config import GenerateConfig
from sds3d.optimize import Optimization, StepClock
from sds3d.presets import generate_config
from simulated_device import DEVICE, Simulation, simulated

WARM_UP = 4
SAID = {
    "without": "without an update of the occupancy grid",
    "with": "with an update of the occupancy grid",
    "later": "with an update after the grid's warm-up",
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one step did."""

    launches: int
    teacher_network: int
    ours: dict[str, int]
    waits: dict[str, int]


class Even:
    """A teacher that launches one kernel: it would rather see an even grey."""

    image_size = 64

    def __init__(self, device: torch.device = DEVICE) -> None:
        self.device = device
        self.schedule = FlowSchedule()

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1).to(self.device)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(torch.full_like(x_t, 0.3), x_t, t, self.schedule)


def on_the_device(config: GenerateConfig) -> GenerateConfig:
    """The config for the simulated device, which is no choice of a user's."""
    moved = dataclasses.replace(config)
    object.__setattr__(moved, "device", DEVICE.type)
    return moved


class _Watched:
    """Launches of a module, by difference."""

    def __init__(self, module: nn.Module | None, simulation: Simulation) -> None:
        self._simulation = simulation
        self.launches = self._before = 0
        if module is not None:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._before = self._simulation.launches.total()

    def _leave(self, *_: Any) -> None:
        self.launches += self._simulation.launches.total() - self._before


def count(teacher_name: str, builds: HostBuilds, **options: Any) -> dict[str, Counts]:
    """Counts of a step of each kind in SAID.

    options: of the optimisation, in the place of the preset's.
    """
    config = generate_config("fast", prompt="a red mushroom", device="cpu")
    optimize = dataclasses.replace(config.optimize, **options)
    config = on_the_device(dataclasses.replace(config, optimize=optimize))
    network: Any = None
    if teacher_name == "none":
        teacher: Any = Even()
    else:
        from sds3d.teachers import load_teacher

        teacher = load_teacher(teacher_name, "cpu")
        network = teacher.network
        # Read once for a run, and no part of a step.
        read = teacher.encode(config.prompt)
        teacher.encode = lambda *_: read.to(DEVICE)
    found: dict[str, Counts] = {}
    with simulated(builds) as simulation:
        if network is not None:
            nn.Module.to(network, DEVICE)
            teacher.device = DEVICE
        watched = _Watched(network, simulation)
        loop = Optimization(config, teacher)
        interval = config.optimize.occupancy_interval
        warm_up = OccupancyConfig().warmup_steps
        while len(found) < len(SAID):
            if len(found) == len(SAID) - 1:
                # What a run reaches in time; the counts do not depend on what it learnt till then.
                loop.step = max(loop.step, warm_up)
            kind = "later" if loop.step >= warm_up else "with"
            if loop.step % interval:
                kind = "without"
            simulation.forget()
            watched.launches = 0
            report = loop.advance(StepClock())
            if loop.step <= WARM_UP:
                continue
            assert report.finite
            ours = Counter(
                {k.removeprefix("ours."): n for k, n in simulation.launches.items() if "ours." in k}
            )
            found[kind] = Counts(
                launches=simulation.launches.total(),
                teacher_network=watched.launches,
                ours=dict(ours),
                waits=dict(simulation.waits),
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count launches and waits of one step.")
    parser.add_argument("--teacher", choices=("toybox", "none"), default="toybox")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    args = parser.parse_args(arguments)
    compiler = system_compiler()
    if compiler is None:
        print("there is no g++ or clang++ here to build the kernels with", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = count(args.teacher, HostBuilds(compiler, Path(folder)))
    for kind, counts in found.items():
        print(
            f"a step {SAID[kind]}: {counts.launches} launches, of which "
            f"the teacher's network {counts.teacher_network} and our kernels "
            f"{sum(counts.ours.values())}; {sum(counts.waits.values())} waits"
        )
        for place, number in counts.waits.items():
            print(f"    {number} {place}")
    if args.json:
        print(json.dumps({kind: dataclasses.asdict(counts) for kind, counts in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
