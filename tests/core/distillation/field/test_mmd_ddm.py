"""MMD fine-tuning: the gradient through the sampler, and a few-step sampler made better."""

from __future__ import annotations

import pytest
import torch

from core.distillation.field.mmd_ddm import MMDFineTuning
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.metrics import mmd_squared, sliced_wasserstein
from core.training import History, Stage, train


def test_the_gradient_goes_through_every_step() -> None:
    """Against a central difference in one weight, the noise being the same."""
    torch.manual_seed(0)
    method = MMDFineTuning(mixture_ground(two_mode_mixture(), width=16), nfe=3, steps=2, batch=64)
    bias = [p for n, p in method.student.named_parameters() if n.endswith("bias")][-1]

    def loss() -> torch.Tensor:
        return method.loss(torch.Generator().manual_seed(1))

    (found,) = torch.autograd.grad(loss(), bias)
    step = 1e-2
    with torch.no_grad():
        bias += step
        ahead = loss()
        bias -= 2 * step
        behind = loss()
        bias += step
    assert abs(found.item()) > 1e-3
    assert found.item() == pytest.approx((ahead - behind).item() / (2 * step), rel=0.02)


def test_features_are_what_is_compared() -> None:
    """The loss is the statistic of phi of both sides; where phi drops all, there is none."""
    ground = mixture_ground(two_mode_mixture(), width=16)
    method = MMDFineTuning(ground, features=lambda x: x.abs() + 1, steps=2, batch=128)
    generator = torch.Generator().manual_seed(3)
    x0 = ground.data(128, generator).x0
    x = method.sample(method.noise(128, generator), method.nfe, None, generator)[-1]
    expected = mmd_squared(x.abs(), x0.abs(), method.bandwidths)
    found = method.loss(torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    method.features = torch.zeros_like
    assert method.loss(torch.Generator().manual_seed(3)).item() == pytest.approx(0, abs=1e-6)


def test_two_steps_come_nearer_to_the_data() -> None:
    ground = mixture_ground(two_mode_mixture(), width=64)
    torch.manual_seed(0)
    method = MMDFineTuning(ground, nfe=2, imitation_steps=400, steps=700)
    distance: dict[str, float] = {}

    def measure(name: str) -> None:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            x = method.sample(method.noise(3000, generator), 2, None, generator)[-1]
        x0 = ground.data(3000, generator).x0
        distance[name] = sliced_wasserstein(x, x0, generator, directions=1).item()

    def progress(stage: Stage, history: History) -> bool:
        if history.step == 400:
            measure("imitation")
        return False

    train(method, progress=progress)
    measure("tuned")
    assert distance["tuned"] < 0.5 * distance["imitation"]


def test_settings_that_cannot_work_are_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    with pytest.raises(ValueError, match="nfe must be at least 1"):
        MMDFineTuning(ground, nfe=0, steps=2)
    with pytest.raises(ValueError, match="steps must exceed imitation_steps"):
        MMDFineTuning(ground, steps=1).stages()
