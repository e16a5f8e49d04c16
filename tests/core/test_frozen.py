"""A hash that tells whether anything in a module changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core.frozen import freeze, parameter_sha256


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_equal_modules_have_equal_hashes() -> None:
    assert parameter_sha256(module()) == parameter_sha256(module())


def test_the_hash_needs_no_contiguous_memory() -> None:
    plain, strided = nn.Linear(3, 3), nn.Linear(3, 3)
    strided.load_state_dict(plain.state_dict())
    strided.weight = nn.Parameter(plain.weight.detach().T.contiguous().T)
    assert not strided.weight.is_contiguous()
    assert parameter_sha256(plain) == parameter_sha256(strided)


def flip_last_bit(changed: nn.Module) -> None:
    weight = changed.get_parameter("2.bias")
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def move_a_buffer(changed: nn.Module) -> None:
    changed.train()(torch.ones(5, 3))


@pytest.mark.parametrize(
    "change",
    [
        flip_last_bit,
        move_a_buffer,
        lambda changed: changed.double(),
        lambda changed: changed.pop(2),
    ],
    ids=["one bit", "a buffer", "the dtype", "a layer less"],
)
def test_any_change_changes_it(change) -> None:
    changed = module()
    before = parameter_sha256(changed)
    change(changed)
    assert parameter_sha256(changed) != before


def test_the_same_bits_of_another_dtype_are_another_hash() -> None:
    zeros = module()
    with torch.no_grad():
        for tensor in zeros.state_dict().values():
            tensor.zero_()
    assert parameter_sha256(copy.deepcopy(zeros).bfloat16()) != parameter_sha256(zeros.half())


def test_a_frozen_module_gets_no_gradient_and_passes_one_on() -> None:
    frozen = module()
    freeze(frozen)
    before = parameter_sha256(frozen)
    x = torch.ones(5, 3, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert parameter_sha256(frozen) == before
