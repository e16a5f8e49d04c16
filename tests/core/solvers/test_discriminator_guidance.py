"""Discriminator guidance: a teacher with wrong weights and the exact discriminator against it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import NoiseSchedule, diffuse, noise_like
from core.solvers.discriminator_guidance import DiscriminatorGuidance, discriminator_loss
from core.solvers.heun import Heun
from core.solvers.sampling import sample


class ExactDiscriminator:
    """log p_t - log q_t of two mixtures."""

    def __init__(
        self, real: GaussianMixture, wrong: GaussianMixture, schedule: NoiseSchedule
    ) -> None:
        self.real, self.wrong, self.schedule = real, wrong, schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        labels = None if cond is None else cond.labels
        real = self.real.noised(alpha, sigma, labels)
        return real.log_density(x_t) - self.wrong.noised(alpha, sigma, labels).log_density(x_t)


def with_weights(mixture: GaussianMixture, *weights: float) -> GaussianMixture:
    return replace(mixture, weights=torch.tensor(weights, dtype=torch.float64))


def test_an_exact_discriminator_repairs_wrong_weights(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    wrong = with_weights(mixture_2d, 0.7, 0.1, 0.2)
    teacher = MixtureDenoiser(wrong, schedule)
    guided = DiscriminatorGuidance(teacher, ExactDiscriminator(mixture_2d, wrong, schedule))
    assert guided.schedule is schedule
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    data, _ = mixture_2d.sample(40, generator)
    x_t = diffuse(schedule, data, noise_like(data, generator), t)
    with torch.no_grad():
        found = guided(x_t, t)
    exact = MixtureDenoiser(mixture_2d, schedule)(x_t, t)
    sigma = schedule.sigma(t)[:, None]
    torch.testing.assert_close(sigma * found.score, sigma * exact.score, rtol=0, atol=1e-11)
    assert (found.eps - teacher(x_t, t).eps).abs().max() > 0.05


def test_with_classes_it_repairs_each(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    wrong = with_weights(mixture_1d, 0.3, 0.1, 0.6)
    teacher = MixtureDenoiser(wrong, main_schedule)
    guided = DiscriminatorGuidance(teacher, ExactDiscriminator(mixture_1d, wrong, main_schedule))
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    t = torch.full((9,), 0.4, dtype=torch.float64)
    cond = Conditioning(labels=torch.ones(9, dtype=torch.long))
    exact = MixtureDenoiser(mixture_1d, main_schedule)(x, t, cond)
    torch.testing.assert_close(guided(x, t, cond).eps, exact.eps, rtol=0, atol=1e-11)


def test_the_weight_scales_the_correction(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    wrong = with_weights(mixture_1d, 0.6, 0.2, 0.2)
    teacher = MixtureDenoiser(wrong, main_schedule)
    discriminator = ExactDiscriminator(mixture_1d, wrong, main_schedule)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    t = torch.full((9,), 0.4, dtype=torch.float64)
    none, one, two = (
        DiscriminatorGuidance(teacher, discriminator, weight)(x, t).score
        for weight in (0.0, 1.0, 2.0)
    )
    torch.testing.assert_close(none, teacher(x, t).score)
    torch.testing.assert_close(two - one, one - none)


def test_samples_get_the_right_weights_back(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    n = 2000
    wrong = with_weights(mixture_1d, 0.6, 0.2, 0.2)
    teacher = MixtureDenoiser(wrong, main_schedule)
    guided = DiscriminatorGuidance(teacher, ExactDiscriminator(mixture_1d, wrong, main_schedule))
    times = torch.linspace(0.95, 0.02, 31, dtype=torch.float64)
    data, _ = mixture_1d.sample(n, generator)
    start = diffuse(main_schedule, data, noise_like(data, generator), times[:1].expand(n))

    def share_of_the_first(x: Tensor) -> float:
        return (x < -0.25).double().mean().item()

    wanted = share_of_the_first(data)
    error = 4 * math.sqrt(0.3 * 0.7 / n)
    assert share_of_the_first(sample(guided, Heun(), times, start).x) == pytest.approx(
        wanted, abs=error
    )
    assert share_of_the_first(sample(teacher, Heun(), times, start).x) > wanted + 2 * error


def test_the_loss_is_least_at_the_log_ratio() -> None:
    """x is 0 or 1: three in four of the data are 0, one in four of the samples."""
    ratio = torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64)

    def loss(logit_of: Tensor) -> Tensor:
        return discriminator_loss(logit_of[[0, 0, 0, 1]], logit_of[[0, 1, 1, 1]])

    gradient = torch.func.grad(loss)(ratio)
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (torch.func.grad(loss)(ratio * 0.9).abs() > 1e-3).all()
    d = torch.tensor(0.75, dtype=torch.float64)
    cross_entropy = -(0.75 * d.log() + 0.25 * (1 - d).log())
    assert loss(ratio).item() == pytest.approx(cross_entropy.item())
