"""Knowledge distillation: its loss is the sampler's error and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from core.distillation.field.knowledge import KnowledgeDistillation
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture
from core.solvers.heun import Heun
from core.solvers.sampling import Solver
from core.training import train


@pytest.mark.parametrize(("solver", "slope"), [(None, 2.0), (Heun(), 4.0)], ids=["ddim", "heun"])
def test_with_the_exact_map_the_loss_is_the_solvers_squared_error(
    mixture_1d: GaussianMixture,
    double: Callable[[Ground], Ground],
    solver: Solver | None,
    slope: float,
) -> None:
    """Nothing is irreducible: the loss falls with twice the solver's order, to nothing."""
    ground = double(replace(mixture_ground(mixture_1d), t_min=0.1, t_max=0.5))
    losses = []
    for steps in (32, 64, 128):
        method = KnowledgeDistillation(ground, teacher_steps=steps, solver=solver, steps=1)
        method.flow_map = ExactFlowMap(mixture_1d, ground.schedule)
        losses.append(method.loss(torch.Generator().manual_seed(0)).item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(losses)]
    assert slopes == pytest.approx([slope, slope], abs=0.1)


def test_one_evaluation_makes_the_teachers_sample() -> None:
    ground = mixture_ground(two_mode_mixture())
    torch.manual_seed(0)
    method = KnowledgeDistillation(ground, teacher_steps=8, steps=400)
    generator = torch.Generator().manual_seed(5)
    z = method.noise(2000, generator)
    train(method)
    with torch.no_grad():
        one = method.sample(z, 1, None, generator)[-1]
    # Untrained 0.94; the mean of all samples 0.92; a DDIM step of the teacher 0.88.
    assert float((one - method.target(z)).square().mean().sqrt()) < 0.15


def test_it_samples_in_one_step_only() -> None:
    ground = mixture_ground(two_mode_mixture())
    method = KnowledgeDistillation(ground, steps=1)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="ask nfe=1"):
        method.sample(method.noise(3, generator), 2, None, generator)
    with pytest.raises(ValueError, match="teacher_steps"):
        KnowledgeDistillation(ground, teacher_steps=0, steps=1)
