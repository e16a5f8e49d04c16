"""Progressive distillation: the target's identity, lossless students, and a short run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.field.progressive import (
    ProgressiveDistillation,
    inherit_weights,
    x0_of_step,
)
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.distillation.students import NetworkDenoiser
from core.mixture import GaussianMixture
from core.prediction import Parametrisation, Prediction
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule
from core.solvers.ddim import DDIM, ddim_step
from core.solvers.sampling import sample
from core.training import train


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), CosineSchedule(), VPSchedule()], ids=lambda s: type(s).__name__
)
def test_one_step_on_the_target_lands_where_two_did(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    ground = mixture_ground(mixture_2d, schedule)
    method = ProgressiveDistillation(ground, steps=4)
    x = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    t = 0.3 + 0.7 * torch.rand(500, generator=generator, dtype=torch.float64)
    target = method.target(x, t, 0.8 * t, 0.6 * t, None, ground.teacher)
    once = ddim_step(Prediction.from_x0(target, x, t, schedule), 0.6 * t)
    middle = ddim_step(ground.teacher(x, t), 0.8 * t)
    twice = ddim_step(ground.teacher(middle, 0.8 * t), 0.6 * t)
    # Up to the last bit, which of x between 2 and 4 is worth 4.4e-16.
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-15)
    assert float((once - ddim_step(ground.teacher(x, t), 0.6 * t)).abs().max()) > 0.01


class Lossless:
    """The student that gives x~ itself."""

    def __init__(self, teacher: Denoiser, grid: Tensor) -> None:
        self.teacher = teacher
        self.grid = grid

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def x0(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        index = (self.grid == t[:, None]).long().argmax(1)
        middle, s = self.grid[index + 1], self.grid[index + 2]
        halfway = ddim_step(self.teacher(x_t, t, cond), middle)
        x_s = ddim_step(self.teacher(halfway, middle, cond), s)
        return x0_of_step(x_t, t, x_s, s, self.schedule)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(self.x0(x_t, t, cond), x_t, t, self.schedule)


def test_lossless_students_equal_the_teacher_round_after_round(
    mixture_1d: GaussianMixture, double: Callable[[Ground], Ground], generator: torch.Generator
) -> None:
    ground = double(mixture_ground(mixture_1d))
    x = ground.noise(200, generator)
    teacher = sample(ground.teacher, DDIM(), ground.grid(8), x).x
    student: Denoiser = ground.teacher
    for steps in (4, 2, 1):
        student = Lossless(student, ground.grid(2 * steps))
        made = sample(student, DDIM(), ground.grid(steps), x).x
        torch.testing.assert_close(made, teacher, rtol=0, atol=1e-12)


def test_the_loss_is_zero_for_the_lossless_student_alone(
    mixture_1d: GaussianMixture,
    double: Callable[[Ground], Ground],
    x0_network: Callable[..., nn.Module],
) -> None:
    ground = double(mixture_ground(mixture_1d))
    method = ProgressiveDistillation(ground, teacher_steps=8, nfe=4, steps=1)
    lossless = Lossless(ground.teacher, ground.grid(8))
    for x0, low, high in (
        (lossless.x0, 0.0, 1e-24),
        (lambda x, t, cond: ground.teacher(x, t).x0, 1e-3, 1.0),
    ):
        method.students[4] = x0_network(x0, ground.teacher)
        assert low <= method.loss(torch.Generator().manual_seed(0)).item() <= high


def test_the_weight_takes_the_larger_of_both_errors(generator: torch.Generator) -> None:
    """max(SNR, 1) |x0 - x~|^2 = max(|x0 - x~|^2, |eps - eps~|^2), x_t being the same."""
    ground = mixture_ground(two_mode_mixture())
    method = ProgressiveDistillation(ground, steps=4)
    x_t, x0, target = torch.randn(3, 64, 1, generator=generator, dtype=torch.float64)
    t = 0.05 + 0.95 * torch.rand(64, generator=generator, dtype=torch.float64)
    first, second = (Prediction.from_x0(v, x_t, t, ground.schedule) for v in (x0, target))
    errors = torch.stack([(first.x0 - second.x0).square(), (first.eps - second.eps).square()])
    torch.testing.assert_close(method.distance(x0, target, t), errors.amax(0).mean())


@pytest.mark.parametrize(
    ("make", "untrained"),
    [
        (partial(ProgressiveDistillation, teacher_steps=16, nfe=4, steps=800), 0.47),
        # ProDiff's recipe: a student (and teacher) of x0, from four steps to two.
        (
            partial(
                ProgressiveDistillation,
                teacher_steps=4,
                nfe=2,
                steps=400,
                parametrisation=Parametrisation.X0,
            ),
            0.84,
        ),
    ],
    ids=["v", "ProDiff"],
)
def test_few_steps_end_where_the_teachers_many_do(
    make: Callable[[Ground], ProgressiveDistillation], untrained: float
) -> None:
    ground = mixture_ground(two_mode_mixture())
    torch.manual_seed(0)
    method = make(ground)
    generator = torch.Generator().manual_seed(5)
    z = method.noise(2000, generator)

    def error(nfe: int) -> float:
        teacher = sample(ground.teacher, DDIM(), ground.grid(method.teacher_steps), z).x
        with torch.no_grad():
            made = method.sample(z, nfe, None, generator)[-1]
        return float((made - teacher).square().mean().sqrt())

    assert error(method.nfe) == pytest.approx(untrained, abs=0.15)
    train(method)
    # The same number of the teacher's own steps is 0.18 away from 16 of them.
    assert error(method.nfe) < 0.09


def test_every_round_starts_from_the_one_before() -> None:
    ground = mixture_ground(two_mode_mixture())
    method = ProgressiveDistillation(ground, teacher_steps=8, nfe=2, steps=2)
    assert [stage.name for stage in method.stages()] == ["8 to 4", "4 to 2"]
    assert set(method.modules()) == {"student_4", "student"}
    _, second = method.stages()
    x, t = torch.randn(5, 1), torch.rand(5)
    assert not torch.equal(method.students[2](x, t), method.students[4](x, t))
    assert second.enter is not None
    second.enter(torch.Generator())
    assert torch.equal(method.students[2](x, t), method.students[4](x, t))
    # A network of other shapes or another parametrisation is left alone.
    same = NetworkDenoiser(ground.make_network(), ground.schedule)
    assert inherit_weights(ground.make_network(), same, Parametrisation.V_PREDICTION)
    assert not inherit_weights(ground.make_network(), same, Parametrisation.X0)
    assert not inherit_weights(ground.make_network(times=2), same, Parametrisation.V_PREDICTION)
    assert not inherit_weights(ground.make_network(), ground.teacher, Parametrisation.V_PREDICTION)


def test_a_run_cut_in_its_second_round_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The teacher of the round is the first student, which the checkpoint holds too."""
    ground = mixture_ground(two_mode_mixture())

    def make() -> ProgressiveDistillation:
        torch.manual_seed(0)
        return ProgressiveDistillation(ground, teacher_steps=4, nfe=1, batch=8, steps=10)

    whole, cut, resumed = make(), make(), make()
    train(whole)
    train(cut, out=tmp_path, progress=lambda stage, history: history.step == 7)
    assert not torch.equal(_flat(cut), _flat(whole))
    train(resumed, out=tmp_path)
    assert torch.equal(_flat(resumed), _flat(whole))


def _flat(method: ProgressiveDistillation) -> Tensor:
    return torch.cat([p.flatten() for m in method.modules().values() for p in m.parameters()])


def test_what_cannot_be_halved_is_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    for teacher_steps, nfe in ((12, 5), (8, 8), (4, 8), (6, 2), (8, 0)):
        with pytest.raises(ValueError, match="nfe times 2"):
            ProgressiveDistillation(ground, teacher_steps=teacher_steps, nfe=nfe, steps=9)
    with pytest.raises(ValueError, match="Choose V_PREDICTION or X0"):
        ProgressiveDistillation(ground, parametrisation=Parametrisation.EPS, steps=9)
    method = ProgressiveDistillation(ground, teacher_steps=4, nfe=2, steps=9)
    with pytest.raises(ValueError, match="ask one of"):
        method.denoiser(3)
