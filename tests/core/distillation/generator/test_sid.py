"""SiD's identity and its gradient through both denoisers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.distillation.generator.sid import SiD
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import VPSchedule, diffuse
from core.training import train

SCHEDULE = VPSchedule(beta_max=8.0)


def make(mixture: GaussianMixture, student: nn.Module, a: float) -> SiD:
    method = SiD(mixture_ground(mixture, SCHEDULE), a=a, latent_dimension=1, steps=1)
    method.student = student
    return method


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0, 1.2])
@pytest.mark.parametrize("t", [0.4, 0.8])
def test_with_the_exact_fake_score_the_expectation_is_known(
    a: float,
    t: float,
    mixture_1d: GaussianMixture,
    line_generator: nn.Module,
    gauss_hermite: Callable[[int, int], tuple[Tensor, Tensor]],
    request: pytest.FixtureRequest,
) -> None:
    """(1 - a) E |delta|^2, the right side over q_t alone; another fake score breaks it."""
    method = make(mixture_1d, line_generator, a)
    law = request.getfixturevalue("line_generator").law()
    method.fake = MixtureDenoiser(law, SCHEDULE)
    draws, weights = gauss_hermite(2, 140)
    time = torch.full((len(draws),), t, dtype=torch.float64)
    with torch.no_grad():
        x = method.generate(draws[:, :1])
        computed = weights @ method.terms_at(x, time, draws[:, 1:])

        u, u_weights = gauss_hermite(1, 160)
        time_u = time[:1].expand(len(u))
        alpha, sigma = SCHEDULE.alpha(time[0]), SCHEDULE.sigma(time[0])
        x_t = alpha * 0.3 + torch.sqrt((alpha * 0.6) ** 2 + sigma**2) * u
        delta = method.ground.teacher(x_t, time_u).x0 - method.fake(x_t, time_u).x0
        fisher = u_weights @ delta.square().sum(1)
        assert computed.item() == pytest.approx((1 - a) * fisher.item(), abs=1e-8)
        assert fisher.item() > 0.01

        wider = GaussianMixture(
            weights=law.weights, means=law.means + 0.2, covariances=law.covariances
        )
        method.fake = MixtureDenoiser(wider, SCHEDULE)
        delta = method.ground.teacher(x_t, time_u).x0 - method.fake(x_t, time_u).x0
        wrong = weights @ method.terms_at(x, time, draws[:, 1:])
        assert abs(wrong - (1 - a) * (u_weights @ delta.square().sum(1))) > 1e-3


def test_the_gradient_runs_through_both_denoisers(
    mixture_2d: GaussianMixture, plane_generator: nn.Module, generator: torch.Generator
) -> None:
    """By x it is the finite difference of the term, in which D and D_fake both read x_t."""
    method = make(mixture_2d, plane_generator, 1.2)
    other = GaussianMixture(
        weights=mixture_2d.weights.flip(0),
        means=mixture_2d.means + 0.1,
        covariances=mixture_2d.covariances,
    )
    method.fake = MixtureDenoiser(other, SCHEDULE)
    x, eps = (torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(method.terms_at(x, t, eps).sum(), [x])
    step = 1e-5
    with torch.no_grad():
        for axis in range(2):
            shift = step * torch.eye(2, dtype=torch.float64)[axis]
            ahead, behind = (method.terms_at(x + sign * shift, t, eps) for sign in (1, -1))
            torch.testing.assert_close(
                (ahead - behind) / (2 * step), gradient[:, axis], rtol=1e-6, atol=1e-8
            )
        # Had the denoisers been held, -delta would be all there is.
        x_t = diffuse(SCHEDULE, x, eps, t)
        held = method.fake(x_t, t).x0 - method.ground.teacher(x_t, t).x0
    assert float((gradient - held).abs().max()) > 0.01


def test_a_negative_a_is_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="SiD's a"):
        SiD(ground, a=-0.1, steps=1)


def test_both_modes_keep_their_weights(
    ground: Ground,
    wasserstein: Callable[[Tensor], float],
    left_mass: Callable[[Tensor], float],
) -> None:
    torch.manual_seed(0)
    method = SiD(ground, learning_rate=1e-3, fake_learning_rate=2e-3, fake_updates=2, steps=500)
    train(method)
    with torch.no_grad():
        x = method.generate(method.noise(4000, torch.Generator().manual_seed(5)))
    # Untrained, and with SDS, the left mode has nothing and the distance is above 0.7.
    assert abs(left_mass(x) - 0.3) < 0.1
    assert wasserstein(x) < 0.3
