"""The sphere: exponential and logarithm undo each other, at every distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.sphere import exp_map, geodesic, log_map, tangent_part, uniform_on_sphere


def pairs(generator: torch.Generator, dimension: int) -> tuple[Tensor, Tensor]:
    """Far, close (1e-9) and nearly opposite (1e-5) pairs, float64."""
    x = torch.randn(60, dimension, generator=generator, dtype=torch.float64)
    y = torch.randn(60, dimension, generator=generator, dtype=torch.float64)
    y[20:40] = x[20:40] + 1e-9 * y[20:40]
    y[40:] = -x[40:] + 1e-5 * y[40:]
    y[20] = x[20]
    return x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dimension", [2, 3, 8])
def test_exp_undoes_log_and_log_undoes_exp(dimension: int, generator: torch.Generator) -> None:
    x, y = pairs(generator, dimension)
    v = log_map(x, y)
    torch.testing.assert_close(exp_map(x, v), y, rtol=0, atol=1e-13)
    torch.testing.assert_close((v * x).sum(1), torch.zeros(60, dtype=torch.float64))
    angle = torch.acos((x * y).sum(1).clamp(-1, 1))[:20]
    torch.testing.assert_close(v.norm(dim=1)[:20], angle, rtol=1e-12, atol=1e-12)
    short = tangent_part(x, y)[:20]
    short = short / short.norm(dim=1, keepdim=True) * torch.linspace(1e-12, 3.1, 20)[:, None]
    torch.testing.assert_close(log_map(x[:20], exp_map(x[:20], short)), short, rtol=0, atol=1e-12)


def test_the_geodesics_velocity_is_its_derivative(generator: torch.Generator) -> None:
    x, y = (p[:20] for p in pairs(generator, 3))
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    by_forward_mode = torch.func.jvp(lambda t: geodesic(x, y, t)[0], (t,), (torch.ones_like(t),))[1]
    point, velocity = geodesic(x, y, t)
    torch.testing.assert_close(velocity, by_forward_mode, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(velocity.norm(dim=1), log_map(x, y).norm(dim=1))
    torch.testing.assert_close((velocity * point).sum(1), torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(point[[0, -1]], torch.stack([x[0], y[-1]]))


def test_uniform_draws_have_no_direction(generator: torch.Generator) -> None:
    x = uniform_on_sphere(40_000, 3, generator)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(40_000))
    torch.testing.assert_close(x.T @ x / 40_000, torch.eye(3) / 3, atol=0.01, rtol=0)
    assert float(x.mean(0).abs().max()) < 0.01
