"""The float16 copy of a table: made once for each of its states, and never an old one."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nerf.hash_grid import HashGrid, HashGridConfig, cuda, module, reference, rounded

CONFIG = HashGridConfig(n_levels=2, log2_table_size=8, base_resolution=4)
G = torch.Generator().manual_seed(0)
POINTS = torch.rand(40, 3, generator=G)


@pytest.fixture
def roundings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tables that were rounded, one after another."""
    made: list[Tensor] = []
    plain = rounded._round

    def watched(table: Tensor) -> Tensor:
        made.append(table.detach().clone())
        return plain(table)

    monkeypatch.setattr(rounded, "_round", watched)
    return made


def table_of(seed: int) -> torch.nn.Parameter:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(CONFIG.n_parameters, generator=g))


def adam(**how: Any) -> Callable[[Tensor], None]:
    def step(table: Tensor) -> None:
        table.grad = torch.ones_like(table)
        torch.optim.Adam([table], lr=0.1, **how).step()

    return step


def assigned(table: Tensor) -> None:
    table.data = table.data + 1.0


def copied(table: Tensor) -> None:
    with torch.no_grad():
        table.copy_(2.0 * table)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "adam": adam(foreach=False),
    "adam over lists": adam(foreach=True),
    "adam in one kernel": adam(fused=True),
    "a copy": copied,
    "an addition to a detached one": lambda table: table.detach().add_(1.0),
    "a part": lambda table: table.detach()[5:9].fill_(7.0),
    "other memory": assigned,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_table_that_was_written_to_is_rounded_anew(
    write: Callable[[Tensor], object], roundings: list[Tensor]
) -> None:
    table = table_of(0)
    before = rounded.half(table)
    assert rounded.half(table) is before
    assert torch.equal(before, table.detach().half())
    assert not before.requires_grad
    for count in (2, 3):
        write(table)
        found = rounded.half(table)
        assert torch.equal(found, table.detach().half())
        assert rounded.half(table) is found
        assert len(roundings) == count
    assert not torch.equal(found, before)


def test_two_tables_have_their_own_and_it_goes_with_its_table(roundings: list[Tensor]) -> None:
    one, other = table_of(1), table_of(2)
    kept = len(rounded._kept)
    for _ in range(2):
        assert torch.equal(rounded.half(one), one.detach().half())
        assert torch.equal(rounded.half(other), other.detach().half())
    assert len(roundings) == 2
    assert len(rounded._kept) == kept + 2
    del one, other
    gc.collect()
    assert len(rounded._kept) == kept


def test_what_cannot_be_followed_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, roundings: list[Tensor]
) -> None:
    with torch.inference_mode():
        table = torch.randn(8, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            table.add_(1.0)
            assert torch.equal(rounded.half(table), table.half())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = table_of(0)
    first = rounded.half(captured)
    assert rounded.half(captured) is not first
    assert len(roundings) == 4


@pytest.mark.usefixtures("on_host")
def test_a_step_rounds_once_and_the_next_one_sees_what_was_learnt(
    monkeypatch: pytest.MonkeyPatch, roundings: list[Tensor]
) -> None:
    monkeypatch.setattr(module, "choose_backend", lambda *_: ("cuda", "for a test"))
    grid = HashGrid(CONFIG, read_as=torch.float16)
    copied(grid.table)
    adam_of_all = torch.optim.Adam(grid.parameters(), lr=0.1)
    for step in range(3):
        exact = reference.encode(POINTS, grid.table.detach().half().float(), CONFIG)
        with torch.no_grad():
            torch.testing.assert_close(grid(POINTS), exact)
        points = POINTS.clone().requires_grad_()
        encoded = grid(points)
        torch.testing.assert_close(encoded.detach(), exact)
        slope = grid.point_gradient(points, torch.ones_like(encoded))
        (along,) = torch.autograd.grad(encoded.square().sum(), points, create_graph=True)
        (slope.square().sum() + along.square().sum()).backward()
        assert len(roundings) == step + 1
        adam_of_all.step()
        adam_of_all.zero_grad()
    assert not torch.equal(roundings[0], roundings[1])
    assert cuda.encode(POINTS, grid.table, CONFIG).isfinite().all()
    assert len(roundings) == 3
