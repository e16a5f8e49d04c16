"""TRACT: the group's fixed point, its relation to progressive distillation, and a short run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.progressive import ProgressiveDistillation, x0_of_step
from core.distillation.field.tract import TRACT
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.distillation.students import NetworkDenoiser
from core.mixture import GaussianMixture
from core.solvers.ddim import DDIM, ddim_step
from core.solvers.sampling import sample
from core.training import train


def group_map(ground: Ground, steps: int, groups: int) -> Callable[..., Tensor]:
    """(x_t, t, cond) to the x0 with which one step does the teacher's to the end of t's group."""
    grid, size = ground.grid(steps), steps // groups

    def x0(x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        index = (grid == t[:, None]).long().argmax(1)
        assert torch.equal(grid[index], t), "only the grid's own times are mapped"
        last = (index // size + 1) * size
        last = last.clamp(max=steps)
        x, here = x_t, index
        for _ in range(size):
            following = (here + 1).clamp(max=last)
            moved = ddim_step(ground.teacher(x, grid[here]), grid[following])
            x = torch.where((here < last)[:, None], moved, x)
            here = following
        return x0_of_step(x_t, t, x, grid[last], ground.schedule)

    return x0


@pytest.mark.parametrize(("groups", "other"), [(4, 2), (1, 4), (2, 1)])
def test_the_fixed_point_is_the_teachers_map_over_the_group(
    groups: int,
    other: int,
    mixture_1d: GaussianMixture,
    double: Callable[[Ground], Ground],
    x0_network: Callable[..., nn.Module],
) -> None:
    """And over no other group."""
    ground = double(mixture_ground(mixture_1d))
    method = TRACT(ground, teacher_steps=8, groups=(groups,), steps=1)
    losses = []
    for count in (groups, other):
        exact = group_map(ground, 8, count)

        # Where t is the group's end the average is asked and not heard.
        def x0(x: Tensor, t: Tensor, cond: Conditioning | None, of=exact) -> Tensor:
            at_end = t == ground.grid(8)[-1]
            return of(x, torch.where(at_end, ground.grid(8)[0], t), cond)

        method.students[groups] = method.averages[groups] = x0_network(x0, ground.teacher)
        losses.append(method.loss(torch.Generator().manual_seed(0)).item())
    assert losses[0] < 1e-20
    assert losses[1] > 1e-4


def test_a_group_of_two_is_progressive_distillation(
    mixture_1d: GaussianMixture, double: Callable[[Ground], Ground], generator: torch.Generator
) -> None:
    """From its first time; from its second, the average unheard, it is the teacher itself."""
    ground = double(mixture_ground(mixture_1d))
    tract = TRACT(ground, teacher_steps=8, groups=(4,), steps=1)
    progressive = ProgressiveDistillation(ground, teacher_steps=8, nfe=4, steps=1)
    x = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    grid = ground.grid(8)
    t, middle, s = (grid[[k]].expand(50) for k in (2, 3, 4))
    teacher = ground.teacher
    torch.testing.assert_close(
        tract.target(x, t, middle, s, None, teacher, teacher),
        progressive.target(x, t, middle, s, None, teacher),
        rtol=0,
        atol=1e-14,
    )
    unheard = NetworkDenoiser(tract.averages[4].double(), ground.schedule)
    alone = tract.target(x, middle, s, s, None, teacher, unheard)
    torch.testing.assert_close(alone, teacher(x, middle).x0, rtol=0, atol=1e-13)


def test_one_step_ends_where_sixteen_did() -> None:
    ground = mixture_ground(two_mode_mixture())
    torch.manual_seed(0)
    method = TRACT(ground, teacher_steps=16, groups=(4, 1), steps=900)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = method.noise(2000, generator)
    many = sample(ground.teacher, DDIM(), ground.grid(16), z).x
    with torch.no_grad():
        errors = {
            nfe: float((method.sample(z, nfe, None, generator)[-1] - many).square().mean().sqrt())
            for nfe in (4, 1)
        }
    # Untrained 0.42 and 0.91; the teacher's own four steps 0.18, its one 0.88.
    assert errors[4] < 0.12
    assert errors[1] < 0.2


def test_phases() -> None:
    ground = mixture_ground(two_mode_mixture())
    method = TRACT(ground, teacher_steps=12, groups=(4, 2), steps=5)
    assert [(s.name, s.steps) for s in method.stages()] == [("12 to 4", 2), ("4 to 2", 3)]
    assert set(method.modules()) == {"student", "student_4", "average_4", "average_2"}
    for teacher_steps, groups in ((12, (5,)), (12, ()), (12, (4, 4)), (12, (2, 4)), (12, (0,))):
        with pytest.raises(ValueError, match="divide one another"):
            TRACT(ground, teacher_steps=teacher_steps, groups=groups, steps=5)
    with pytest.raises(ValueError, match="ask one of"):
        method.denoiser(1)
