"""Graphs of a teacher's network: what is captured and when, with a stand-in for CUDA's graphs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.teachers import graphs as module
from core.teachers.graphs import CudaGraphs, graphed


class Network(nn.Module):
    """Has a weight, takes what networks take, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).requires_grad_(False)
        self.asked = 0

    def forward(self, x: Tensor, *, extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        self.asked += 1
        shift = 0.0 if extra is None else extra["shift"]
        return {"sample": self.layer(x) + shift}


@dataclass
class FakeGraphs:
    """Replays by calling again, into the memory that the capture's outputs had."""

    error: Exception | None = None
    off_by: float = 0.0
    refused: str | None = None
    captures: int = 0
    replays: int = 0
    outputs: list[Any] = field(default_factory=list)

    def refusal(self, device: torch.device) -> str | None:
        return self.refused

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        assert not torch.is_grad_enabled()
        self.captures += 1
        if self.error is not None:
            raise self.error
        outputs = run()
        self.outputs.append(outputs)

        def replay() -> None:
            self.replays += 1
            outputs["sample"].copy_(run()["sample"] + self.off_by)

        return replay, outputs


def teacher_of(network: nn.Module) -> Any:
    return SimpleNamespace(lora_places=SimpleNamespace(network="unet"), unet=network)


def inputs(seed: int, count: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=g), {"shift": torch.randn(3, generator=g)}


def test_calls_that_come_again_are_replayed_with_their_own_inputs() -> None:
    network, fake, notes = Network(), FakeGraphs(), []
    plain = Network()
    plain.load_state_dict(network.state_dict())
    with graphed(teacher_of(network), note=notes.append, graphs=fake):
        found = []
        for seed in range(6):
            x, extra = inputs(seed)
            found.append(network(x, extra=extra)["sample"])
    # Compared at the end: what an earlier call gave must not change with a later replay.
    for seed, sample in enumerate(found):
        x, extra = inputs(seed)
        assert torch.equal(sample, plain(x, extra=extra)["sample"])
    assert fake.captures == 1
    assert fake.replays == 1 + 6 - (module.CALLS_BEFORE + 1)  # the first one is the comparison
    assert notes == []
    assert "forward" not in vars(network)
    asked = network.asked
    network(inputs(0)[0])
    assert (network.asked, fake.replays) == (asked + 1, 4)


def test_shapes_have_graphs_of_their_own_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_GRAPHS", 2)
    network, fake = Network(), FakeGraphs()
    with graphed(teacher_of(network), note=pytest.fail, graphs=fake):
        network(inputs(0, 9)[0])  # once is not captured
        for count in (2, 3, 5):
            for seed in range(4):
                x, extra = inputs(seed, count)
                assert network(x, extra=extra)["sample"].shape == (count, 3)
                assert network(x)["sample"].shape == (count, 3)
    assert fake.captures == 2


def test_weights_that_were_moved_are_captured_again() -> None:
    network, fake = Network(), FakeGraphs()
    x, _ = inputs(0)
    with graphed(teacher_of(network), note=pytest.fail, graphs=fake):
        for _ in range(4):
            network(x)
        network.layer.weight.data = network.layer.weight.data + 1.0
        for _ in range(4):
            torch.testing.assert_close(network(x)["sample"], network.layer(x))
    assert fake.captures == 2


def test_what_wants_a_gradient_is_asked_plainly() -> None:
    network, fake = Network(), FakeGraphs()
    x = inputs(0)[0].requires_grad_()
    with graphed(teacher_of(network), note=pytest.fail, graphs=fake):
        for _ in range(5):
            (grad,) = torch.autograd.grad(network(x)["sample"].sum(), x)
            assert grad.abs().sum() > 0
        assert fake.captures == 0
        with torch.no_grad():
            for _ in range(5):
                network(x)
    assert fake.captures == 1


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeGraphs(error=RuntimeError("not permitted\nand more")), "not permitted"),
        (FakeGraphs(error=torch.OutOfMemoryError("no")), "the memory does not suffice"),
        (FakeGraphs(error=KeyError()), "KeyError"),
        (FakeGraphs(off_by=0.1), "the replay differs from the plain call"),
        (FakeGraphs(off_by=float("nan")), "the replay differs from the plain call"),
    ],
)
def test_what_fails_is_given_up_with_one_reason(fake: FakeGraphs, reason: str) -> None:
    network, notes = Network(), []
    with graphed(teacher_of(network), note=notes.append, graphs=fake):
        for seed in range(6):
            x, _ = inputs(seed)
            assert torch.equal(network(x)["sample"], network.layer(x))
    assert notes == [reason]
    assert fake.captures == 1


class ReadsOnTheHost(Network):
    """Its answer depends on a number that it asks the device for."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[float] | None = None
        self.replaying = False

    def forward(self, x: Tensor, *, extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        assert extra is not None
        read = float(extra["number"].flatten()[-1])
        if self.replaying:
            assert self.held is not None
            read = self.held[-1]
        else:
            self.held = [read]
        scale = -3.0 if math.isnan(read) else read
        return {"sample": self.layer(x) * (1.0 + scale)}


@dataclass
class HoldingGraphs(FakeGraphs):
    """As CUDA's: what the host knew at the capture is not read again."""

    network: ReadsOnTheHost | None = None

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        network = self.network
        assert network is not None
        again, outputs = super().capture(run)

        def replay() -> None:
            network.replaying = True
            again()
            network.replaying = False

        return replay, outputs


@pytest.mark.parametrize(
    "number",
    [
        torch.tensor([0.7]),
        torch.tensor(0.0),
        torch.tensor([[math.nan, math.nan]]),
        torch.tensor([500.0], dtype=torch.float16),
        torch.tensor([999]),
        torch.tensor([False, True]),
    ],
)
def test_an_input_that_is_read_on_the_host_is_found_out(number: Tensor) -> None:
    network, notes = ReadsOnTheHost(), []
    fake = HoldingGraphs(network=network)
    # Without other numbers at the capture its replay on the call's own is the plain answer.
    x = inputs(0)[0]
    with torch.no_grad():
        replay, held = fake.capture(lambda: network(x, extra={"number": number}))
        plain = network(x, extra={"number": number})["sample"]
        replay()
    assert torch.equal(held["sample"], plain)
    with graphed(teacher_of(network), note=notes.append, graphs=fake):
        for _ in range(6):
            assert torch.equal(network(x, extra={"number": number})["sample"], plain)
    assert notes == ["the replay differs from the plain call"]
    assert fake.captures == 2


def test_a_capture_asks_for_no_index_that_there_is_not() -> None:
    class Looks(Network):
        def forward(
            self, x: Tensor, *, extra: dict[str, Tensor] | None = None
        ) -> dict[str, Tensor]:
            assert extra is not None
            by_index, by_time = x[extra["index"]], x[extra["time"].long()]
            return {"sample": torch.where(extra["mask"], self.layer(by_index), by_time)}

    network, plain, fake = Looks(), Looks(), FakeGraphs()
    plain.load_state_dict(network.state_dict())
    for index in ([0, 1, 3, -4], [3, 3, -1, 0]):
        extra = {
            "index": torch.tensor(index),
            "time": torch.tensor([0.0, 3.0, 2.5, 0.2]),
            "mask": torch.tensor([[True], [False], [True], [False]]),
        }
        static = [module._other_numbers(tensor) for tensor in extra.values()]
        for given, other in zip(extra.values(), static, strict=True):
            assert (given.shape, given.dtype) == (other.shape, other.dtype)
            assert not torch.equal(given, other)
        with graphed(teacher_of(network), note=pytest.fail, graphs=fake):
            for seed in range(5):
                x = inputs(seed)[0]
                found = network(x, extra=extra)["sample"]
                assert torch.equal(found, plain(x, extra=extra)["sample"])
    assert (fake.captures, fake.replays) == (2, 6)


def test_what_cannot_be_captured_is_left_as_it_is() -> None:
    learning = Network()
    learning.layer.requires_grad_(True)
    cases = [
        (teacher_of(Network()), FakeGraphs(refused="no device"), "no device"),
        (teacher_of(learning), FakeGraphs(), "its network learns"),
        (teacher_of(nn.Identity()), FakeGraphs(), "its network has no weights"),
        (object(), FakeGraphs(), "this teacher does not say which network it asks"),
    ]
    for teacher, fake, reason in cases:
        notes: list[str] = []
        with graphed(teacher, note=notes.append, graphs=fake):
            assert "forward" not in vars(getattr(teacher, "unet", SimpleNamespace()))
        assert notes == [reason]
    assert CudaGraphs().refusal(torch.device("cpu")) == "there are no CUDA graphs on the cpu"


@pytest.mark.gpu
def test_on_a_gpu_a_graph_gives_what_the_network_gives() -> None:
    network = Network().cuda()
    notes: list[str] = []
    with torch.no_grad(), graphed(teacher_of(network), note=notes.append):
        for seed in range(6):
            x = inputs(seed)[0].cuda()
            torch.testing.assert_close(network(x)["sample"], network.layer(x))
        asked = network.asked
        network(inputs(9)[0].cuda())
        assert network.asked == asked  # replayed
    assert notes == []
