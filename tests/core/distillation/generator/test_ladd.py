"""LADD: the teacher's features, the critic's noise levels, and one-step samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.distillation.generator.critic import critic_logits
from core.distillation.generator.ladd import LADD, module_features, prediction_features
from core.distillation.method import Ground
from core.distillation.students import NetworkDenoiser
from core.frozen import freeze
from core.networks import MLP
from core.schedule import diffuse
from core.training import train


def test_features_of_any_denoiser(ground: Ground, generator: torch.Generator) -> None:
    x_t, t = torch.randn(5, 1, generator=generator), torch.linspace(0.1, 1, 5)
    features = prediction_features(ground.teacher)(x_t, t, None)
    torch.testing.assert_close(features, torch.cat([x_t, ground.teacher(x_t, t).x0], 1))


def test_features_of_a_layer(ground: Ground, generator: torch.Generator) -> None:
    """What the layer gave, differentiable by x_t, with no hook left behind."""
    network = MLP(1, width=8)
    freeze(network)
    denoiser = NetworkDenoiser(network, ground.schedule)
    x_t = torch.randn(5, 1, generator=generator, requires_grad=True)
    t = torch.linspace(0.1, 1, 5)
    layer = network.layers[3]
    features = module_features(denoiser, layer)(x_t, t, None)
    assert features.shape == (5, 8)
    # The layers after it make the network's answer of it.
    torch.testing.assert_close(network.layers[4:](features), network(x_t, t))
    (gradient,) = torch.autograd.grad(features.square().sum(), [x_t])
    assert bool((gradient != 0).all())
    assert not layer._forward_hooks
    with pytest.raises(RuntimeError, match="its own network"):
        module_features(denoiser, torch.nn.Linear(1, 1))(x_t, t, None)


def test_the_gradient_runs_through_the_teacher(ground: Ground) -> None:
    """By x: through alpha, the features and the critic; by finite differences."""
    method = LADD(ground, steps=1)
    method.critic.double()
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None].requires_grad_(True)
    t = torch.linspace(0.2, 0.9, 7, dtype=torch.float64)
    eps, s = torch.full_like(x, 0.3), torch.ones_like(t)

    def logits(x: Tensor) -> Tensor:
        return critic_logits(method.critic, method.read(x, t, eps), t, None, s)

    (gradient,) = torch.autograd.grad(logits(x).sum(), [x])
    with torch.no_grad():
        differences = (logits(x + 1e-4) - logits(x - 1e-4)) / 2e-4
    # The teacher computes in float32.
    torch.testing.assert_close(differences, gradient[:, 0], rtol=0.02, atol=2e-3)
    direct = diffuse(ground.schedule, x, eps, t)
    torch.testing.assert_close(method.read(x, t, eps)[:, :1], direct)


def test_noise_levels_are_logit_normal(ground: Ground) -> None:
    method = LADD(ground, logit_mean=1.0, logit_std=0.5, steps=1)
    t = method.times(20_000, torch.Generator().manual_seed(0))
    logits = torch.logit((t - ground.t_min) / (ground.t_max - ground.t_min))
    assert logits.mean().item() == pytest.approx(1.0, abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="logit_std"):
        LADD(ground, logit_std=0.0, steps=1)


def test_one_step_gives_both_modes(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = LADD(
        ground, levels=2, learning_rate=1e-3, critic_learning_rate=2e-3, r1_weight=0.1, steps=700
    )
    train(method)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        x = method.sample(method.noise(4000, generator), 1, None, generator)[-1]
    # Untrained, or with a critic that does not read the level, the left mode has nothing and
    # the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.13
    assert wasserstein(x) < 0.35
