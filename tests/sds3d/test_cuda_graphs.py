"""--cuda-graphs: off it changes nothing, on the CPU it says so, and replayed a run is the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers import graphs
from core.teachers.lora import LoraPlaces
from sds3d.config import GenerateConfig
from sds3d.events import Event, Warning
from sds3d.optimize import Optimized, optimize
from sds3d.optimize_config import FieldOptions, OptimizeConfig

OPTIONS = OptimizeConfig(
    steps=8,
    resolutions=(8,),
    resolution_milestones=(),
    step_size=0.2,
    occupancy_resolution=8,
    field=FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    ),
)


class NetworkTeacher:
    """Has a network, as the teachers do that say where it is."""

    image_size = 8
    lora_places = LoraPlaces(network="network", attention="none", time_embedding=None)

    def __init__(self) -> None:
        self.schedule = FlowSchedule()
        g = torch.Generator().manual_seed(0)
        self.network = nn.Conv2d(3, 3, 3, padding=1, bias=False).requires_grad_(False)
        self.network.weight.copy_(0.3 * torch.randn(self.network.weight.shape, generator=g))

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(self.network(x_t), x_t, t, self.schedule)


class Replayed:
    """Stands in for CUDA's graphs on the CPU; `replays` counts."""

    replays = 0

    def refusal(self, device: torch.device) -> str | None:
        return None

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        outputs = run()

        def replay() -> None:
            Replayed.replays += 1
            outputs.copy_(run())

        return replay, outputs


def run(events: list[Event], **options: Any) -> Optimized:
    config = GenerateConfig(
        prompt="a ball", device="cpu", optimize=dataclasses.replace(OPTIONS, **options)
    )
    return optimize(
        config,
        NetworkTeacher(),
        checkpoint=None,
        on_event=events.append,
        should_stop=lambda: False,
    )


def state(made: Optimized) -> dict[str, Tensor]:
    (particle,) = made.particles
    return particle.state_dict()


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning)]


def test_a_replayed_run_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    plain = state(run(events))
    monkeypatch.setattr(graphs, "CudaGraphs", Replayed)
    monkeypatch.setattr(Replayed, "replays", 0)
    replayed = state(run(events, cuda_graphs=True))
    # Each step asks once with guidance, and the agreement at the end twice.
    assert Replayed.replays >= OPTIONS.steps - graphs.CALLS_BEFORE
    for name, tensor in plain.items():
        assert torch.equal(replayed[name], tensor)
    assert warnings(events) == []


def test_on_the_cpu_one_line_says_that_there_are_none() -> None:
    events: list[Event] = []
    run(events, cuda_graphs=True)
    assert warnings(events) == [
        "--cuda-graphs: the teacher is asked without graphs: there are no CUDA graphs on the cpu"
    ]


def test_a_teacher_that_learns_beside_is_never_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "CudaGraphs", Replayed)
    teacher = NetworkTeacher()
    with graphs.graphed(teacher, note=pytest.fail):
        assert "forward" in vars(teacher.network)
    assert "forward" not in vars(teacher.network)
