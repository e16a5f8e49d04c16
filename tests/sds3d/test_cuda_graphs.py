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
from core.teachers.lora import LoraDenoiser, LoraPlaces, adapt
from sds3d.config import GenerateConfig
from sds3d.events import Event, Warning
from sds3d.optimize import Optimization, Optimized, optimize
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


class Network(nn.Module):
    """Of images; has a layer that takes adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.attention = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return h + self.attention(h.movedim(1, -1)).movedim(-1, 1)


class NetworkTeacher:
    """Has a network, as the teachers do that say where it is, and twins of it that learn."""

    image_size = 8
    lora_places = LoraPlaces(network="network", attention="attention", time_embedding=None)

    def __init__(self) -> None:
        self.schedule = FlowSchedule()
        g = torch.Generator().manual_seed(0)
        self.network = Network().requires_grad_(False)
        for weight in self.network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=g))

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.zeros(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=text))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(self.network(x_t), x_t, t, self.schedule)

    def adapt(self, rank: int, generator: torch.Generator) -> LoraDenoiser:
        teacher: Any = self
        return adapt(teacher, self.lora_places, rank=rank, generator=generator)


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


def run(
    events: list[Event], observe: Callable[[Optimization], None] | None = None, **options: Any
) -> Optimized:
    config = GenerateConfig(
        prompt="a ball", device="cpu", optimize=dataclasses.replace(OPTIONS, **options)
    )
    return optimize(
        config,
        NetworkTeacher(),
        checkpoint=None,
        on_event=events.append,
        should_stop=lambda: False,
        observe=observe,
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


def test_the_twin_of_a_replayed_teacher_learns_as_that_of_a_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt: list[dict[str, Tensor]] = []

    def look(loop: Optimization) -> None:
        fake = loop.supervision.fake
        assert fake is not None
        learnt.append({name: tensor.clone() for name, tensor in fake.tensors().items()})

    vsd: dict[str, Any] = {"method": "vsd", "lora_learning_rate": 0.02, "camera_guidance": False}
    plain = state(run([], look, **vsd))
    events: list[Event] = []
    monkeypatch.setattr(graphs, "CudaGraphs", Replayed)
    monkeypatch.setattr(Replayed, "replays", 0)
    replayed = state(run(events, look, cuda_graphs=True, **vsd))
    assert Replayed.replays >= OPTIONS.steps - graphs.CALLS_BEFORE
    assert warnings(events) == []
    for name, tensor in plain.items():
        assert torch.equal(replayed[name], tensor)
    assert len(learnt) == 2 * OPTIONS.steps
    for one, other in zip(learnt[: OPTIONS.steps], learnt[OPTIONS.steps :], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    (low,) = (name for name in learnt[0] if name.startswith("weights.") and "lora_B" in name)
    assert (learnt[-1][low] - learnt[0][low]).abs().max() > 1e-3
