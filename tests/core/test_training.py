"""The loop: turns, stages, averages, divergence, and resuming to the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.training import DivergedError, History, Player, Stage, train


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


class TwoStages:
    """First `a` learns a noisy target; then `b` starts from `a` and both go on."""

    def __init__(self) -> None:
        self.a, self.b, self.average = linear(0.0), linear(5.0), linear(0.0)
        self.entered = 0

    def modules(self) -> Mapping[str, nn.Module]:
        return {"a": self.a, "b": self.b, "average": self.average}

    def loss_a(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(8, 2, generator=generator)
        return (self.a(x)[:, 0] - x @ torch.tensor([1.0, -2.0])).square().mean()

    def loss_b(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(8, 2, generator=generator)
        return (self.b(x) - 2 * self.a(x)).square().mean()

    def enter(self, generator: torch.Generator) -> None:
        self.entered += 1
        self.b.load_state_dict(self.a.state_dict())

    def stages(self) -> Sequence[Stage]:
        a = Player(module=self.a, loss=self.loss_a, learning_rate=0.05, average=self.average)
        b = Player(module=self.b, loss=self.loss_b, learning_rate=0.05, updates=2)
        return [
            Stage(name="first", steps=30, players={"a": a}),
            Stage(name="second", steps=40, players={"a": a, "b": b}, enter=self.enter),
        ]


def weights(method: TwoStages) -> list[Tensor]:
    return [m.weight.detach().clone() for m in (method.a, method.b, method.average)]


def test_it_trains_in_turns_and_stages() -> None:
    method = TwoStages()
    history = train(method)
    assert history.stages == [("first", 0), ("second", 30)]
    assert history.step == 70
    assert len(history.losses["a"]) == len(history.losses["b"]) == 70
    assert all(math.isnan(v) for v in history.losses["b"][:30])
    assert method.entered == 1
    torch.testing.assert_close(method.a.weight, torch.tensor([[1.0, -2.0]]), atol=0.15, rtol=0)
    assert history.losses["a"][-1] < 0.02 * history.losses["a"][0]


def test_only_the_player_whose_turn_it_is_moves() -> None:
    method = TwoStages()
    moved = method.a.weight.detach().clone()

    class OnlyB(TwoStages):
        def stages(self) -> Sequence[Stage]:
            return [
                Stage(name="b", steps=5, players={"b": Player(module=self.b, loss=self.loss_b)})
            ]

    only = OnlyB()
    train(only)
    assert torch.equal(only.a.weight, moved)
    assert not torch.equal(only.b.weight, method.b.weight)


@pytest.mark.parametrize("stop_at", [1, 17, 30, 31, 55])
def test_a_resumed_run_reaches_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = TwoStages()
    train(whole, seed=3)
    first = TwoStages()
    train(first, seed=3, out=tmp_path, progress=lambda _, h: h.step == stop_at)
    second = TwoStages()
    history = train(second, seed=99, out=tmp_path)  # the seed is the checkpoint's
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    assert history.step == 70
    assert history.stages == [("first", 0), ("second", 30)]
    assert first.entered + second.entered == 1


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first, again = TwoStages(), TwoStages()
    train(first, out=tmp_path)
    history = train(again, out=tmp_path)
    assert history.step == 70
    for a, b in zip(weights(first), weights(again), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_is_named() -> None:
    layer = linear(0.0)

    class Broken:
        def modules(self) -> Mapping[str, nn.Module]:
            return {"student": layer}

        def stages(self) -> Sequence[Stage]:
            player = Player(module=layer, loss=lambda _: layer.weight.sum() / 0)
            return [Stage(name="distil", steps=3, players={"student": player})]

    with pytest.raises(DivergedError, match=r"'student' is nan at step 0 of stage 'distil'"):
        train(Broken())


def test_the_average_lags_behind() -> None:
    method = TwoStages()
    seen: list[float] = []

    def progress(_: Stage, history: History) -> bool:
        gap = (method.a.weight - method.average.weight).norm()
        seen.append(float(gap.detach()))
        return history.step == 30

    train(method, progress=progress)
    assert seen[5] > 0.1
    expected = 0.99  # after one step from zero the average holds a hundredth of the way
    one = TwoStages()
    train(one, progress=lambda _, h: h.step == 1)
    torch.testing.assert_close(one.average.weight, (1 - expected) * one.a.weight)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"updates": 0}, {"average_decay": 1.0}])
def test_a_player_that_cannot_learn_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="A player needs"):
        Player(module=linear(0.0), loss=lambda _: torch.zeros(()), **wrong)  # pyright: ignore[reportArgumentType]
