"""ADD: its distillation term is SDS, its critic reads features, and its levels divide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.distillation.generator.adversarial import ADD, alpha_weighting
from core.distillation.generator.critic import critic_logits, discriminator_loss
from core.distillation.method import Ground
from core.distillation.score.sds import SDS
from core.schedule import VPSchedule
from core.training import train


def test_the_distillation_term_is_proportional_to_sds(
    ground: Ground, generator: torch.Generator
) -> None:
    """Its gradient by each sample is 2/B times SDS's with the weighting c(t)."""
    method = ADD(ground, steps=1)
    x, eps = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(True)
    t = torch.linspace(0.1, 0.95, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(method.distillation_at(x, t, eps), [x])
    sds = SDS(ground.teacher, alpha_weighting).gradient_at(x.detach(), t, eps)
    torch.testing.assert_close(gradient, 2 / 6 * sds, rtol=1e-12, atol=1e-14)
    assert bool((gradient.abs() > 1e-5).all())


def test_alpha_weighting_is_alpha() -> None:
    t = torch.linspace(0, 1, 5)
    assert torch.equal(alpha_weighting(VPSchedule(), t), VPSchedule().alpha(t))


def test_the_critic_reads_features_with_r1_on_them(ground: Ground) -> None:
    """At r1_weight r the loss is more by r E |d logit / d features|^2, here known."""
    scale = 3.0

    def features(x: Tensor) -> Tensor:
        return torch.cat([scale * x, x.square()], dim=1)

    losses = []
    for r1_weight in (0.0, 1000.0):
        torch.manual_seed(0)
        method = ADD(ground, features=features, r1_weight=r1_weight, batch=16, steps=1)
        losses.append(method.critic_loss(torch.Generator().manual_seed(1)).item())
    torch.manual_seed(0)
    method = ADD(ground, features=features, batch=16, steps=1)
    generator = torch.Generator().manual_seed(1)
    data = ground.data(16, generator)
    x_s, index = method.draw_start(data, generator)
    s = ground.grid(4)[index]
    real = features(data.x0).requires_grad_(True)
    logits = critic_logits(method.critic, real, s)
    (slope,) = torch.autograd.grad(logits.sum(), [real], retain_graph=True)
    fake = critic_logits(method.critic, features(method.generate(x_s, index)), s)
    assert losses[0] == pytest.approx(discriminator_loss(logits, fake).item(), rel=1e-5)
    r1 = slope.square().sum(1).mean().item()
    assert losses[1] - losses[0] == pytest.approx(1000 * r1, rel=1e-3)
    assert r1 > 1e-5


def test_the_student_is_sampled_at_the_levels_it_knows(
    ground: Ground, generator: torch.Generator
) -> None:
    method = ADD(ground, levels=4, steps=1)
    seen: list[float] = []
    method.student.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1][0]))
    x = method.noise(3, generator)
    for nfe, levels in ((1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3])):
        seen.clear()
        with torch.no_grad():
            assert len(method.sample(x, nfe, None, generator)) == nfe + 1
        assert [float(t) for t in seen] == ground.grid(4)[levels].tolist()
    with pytest.raises(ValueError, match="divides 4"):
        method.sample(x, 3, None, generator)


def test_settings_that_cannot_work_are_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="levels"):
        ADD(ground, levels=0, steps=1)
    with pytest.raises(ValueError, match="distillation_weight"):
        ADD(ground, distillation_weight=-1.0, steps=1)


def test_one_step_gives_both_modes(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = ADD(ground, learning_rate=1e-3, critic_learning_rate=2e-3, steps=600)
    train(method)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        x = method.sample(method.noise(4000, generator), 1, None, generator)[-1]
    # Untrained, or with a critic that does not read the level, the left mode has nothing and
    # the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.12
    assert wasserstein(x) < 0.3
