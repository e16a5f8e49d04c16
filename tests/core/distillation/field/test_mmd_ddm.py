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


def test_features_are_what_is_compared(generator: torch.Generator) -> None:
    """Blind to what phi drops: with the absolute value, signs do not matter."""
    ground = mixture_ground(two_mode_mixture(), width=16)
    torch.manual_seed(0)
    plain = MMDFineTuning(ground, steps=2)
    torch.manual_seed(0)
    blind = MMDFineTuning(ground, features=torch.abs, steps=2)
    z = blind.noise(256, torch.Generator().manual_seed(2))
    x0 = ground.data(256, torch.Generator().manual_seed(2)).x0
    x = blind.sample(z, 4, None, generator)[-1]
    folded = mmd_squared(x.abs(), x0.abs(), blind.bandwidths)
    assert folded.item() != pytest.approx(mmd_squared(x, x0, plain.bandwidths).item(), rel=0.05)
    first, second = (m.loss(torch.Generator().manual_seed(3)).item() for m in (plain, blind))
    assert first != pytest.approx(second, rel=0.05)


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
