"""VSD with exact scores: SDS for one particle, the gradient of a KL for several, no collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.distillation.mixture_ground import two_mode_mixture
from core.distillation.score.sds import (
    SDS,
    ScoreDistillation,
    Weighting,
    eps_weighting,
    x0_weighting,
)
from core.distillation.score.vsd import VSD
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, NoiseSchedule, VESchedule


def law_of(particles: Tensor) -> GaussianMixture:
    """Each of [P, D] as likely."""
    return GaussianMixture(
        weights=torch.ones(len(particles), dtype=particles.dtype),
        means=particles,
        covariances=torch.zeros_like(particles),
    )


def test_with_one_particle_it_is_sds(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    teacher = MixtureDenoiser(mixture_2d, schedule)
    particle = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    vsd = VSD(teacher, MixtureDenoiser(law_of(particle), schedule))
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x, eps = particle.expand(9, 2), torch.randn(9, 2, generator=generator, dtype=torch.float64)
    expected = SDS(teacher).gradient_at(x, t, eps)
    torch.testing.assert_close(vsd.gradient_at(x, t, eps), expected, rtol=1e-9, atol=1e-9)
    assert bool((expected.norm(dim=1) > 1e-6).all())
    drawn = vsd.gradient(x, t, None, torch.Generator().manual_seed(1))
    again = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(drawn, vsd.gradient_at(x, t, again))


@pytest.mark.parametrize(("weighting", "w"), [(x0_weighting, 1.0), (eps_weighting, 0.6 / 0.4)])
def test_the_expectation_is_the_gradient_of_the_particles_kl(
    mixture_1d: GaussianMixture, weighting: Weighting, w: float
) -> None:
    """w (sigma/alpha)^2 dKL(q_t || p_t)/dx_i, the KL by quadrature of densities alone."""
    schedule = FlowSchedule()
    time = torch.tensor(0.4, dtype=torch.float64)
    particles = torch.tensor([[-0.9], [-0.2], [1.1]], dtype=torch.float64, requires_grad=True)
    y = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    t = time.expand(len(y))
    q = (
        torch.distributions.Normal(0.6 * particles[:, 0], 0.4)
        .log_prob(y)
        .logsumexp(1)
        .sub(torch.log(torch.tensor(3.0, dtype=torch.float64)))
    )
    p = mixture_1d.noised(1 - t, t).log_density(y)
    kl = (q.exp() * (q - p)).sum() * (18 / 4000)
    (by_particle,) = torch.autograd.grad(kl, [particles])

    fixed = particles.detach()
    vsd = VSD(
        MixtureDenoiser(mixture_1d, schedule), MixtureDenoiser(law_of(fixed), schedule), weighting
    )
    step = 16 / 4000
    eps = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(eps).exp() * step
    for i in range(3):
        gradient = vsd.gradient_at(fixed[i].expand(4001, 1), t, eps[:, None])
        # Each particle is a third of q.
        expected = 3 * w * (0.4 / 0.6) ** 2 * by_particle[i]
        torch.testing.assert_close(density @ gradient, expected, rtol=0, atol=1e-8)
        assert abs(by_particle[i].item()) > 1e-3


def descend(score: str, steps: int = 400) -> Tensor:
    """64 particles from N(0, 1), eight noises each a step, all scores exact; where they end."""
    schedule = FlowSchedule()
    teacher = MixtureDenoiser(two_mode_mixture().to(dtype=torch.float64), schedule)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    for step in range(steps):
        rule: ScoreDistillation = SDS(teacher)
        if score == "vsd":
            rule = VSD(teacher, MixtureDenoiser(law_of(x), schedule))
        t = 0.02 + 0.98 * torch.rand(512, generator=generator, dtype=torch.float64)
        gradient = rule.gradient(x.repeat(8, 1), t, None, generator)
        x = x - 0.3 * (1 - step / steps) * gradient.view(8, 64, 1).mean(0)
    return x[:, 0]


def test_many_particles_keep_the_mode_weights_where_sds_collapses() -> None:
    x = descend("vsd")
    left = x[x < -0.2]
    # 19 of 64 particles are nearest to 0.3.
    assert len(left) / 64 == pytest.approx(0.3, abs=0.02)
    assert left.std().item() == pytest.approx(0.2, rel=0.2)
    assert x[x >= -0.2].std().item() == pytest.approx(0.3, rel=0.2)
    collapsed = descend("sds", steps=200)
    assert collapsed.std().item() < 0.1
    assert int((collapsed < -0.2).sum()) == 0


def test_both_denoisers_must_have_one_schedule(mixture_2d: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="teacher's schedule"):
        VSD(MixtureDenoiser(mixture_2d, FlowSchedule()), MixtureDenoiser(mixture_2d, VESchedule()))
