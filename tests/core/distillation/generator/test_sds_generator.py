"""SDS on a generator: SDS's gradient, and its collapse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.distillation.generator.sds_generator import SDSGenerator
from core.distillation.method import Ground
from core.distillation.score.sds import SDS
from core.training import train


def test_the_gradient_is_sds(ground: Ground, generator: torch.Generator) -> None:
    x, eps = (torch.randn(5, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(True)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(SDSGenerator(ground, steps=1).loss_at(x, t, eps), [x])
    torch.testing.assert_close(5 * gradient, SDS(ground.teacher).gradient_at(x.detach(), t, eps))
    assert bool((gradient.abs() > 1e-4).all())


def test_it_collapses(ground: Ground, left_mass: Callable[[Tensor], float]) -> None:
    """From all of the line, to one point; Diff-Instruct on the same ground keeps both modes."""
    torch.manual_seed(0)
    method = SDSGenerator(ground, steps=300)
    train(method)
    with torch.no_grad():
        x = method.generate(method.noise(4000, torch.Generator().manual_seed(5)))
    # The data's spread is 0.96, its lighter mode's mass 0.3.
    assert float(x.std()) < 0.2
    assert left_mass(x) < 0.02
