"""SDS against the KL divergence it descends, computed without any score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.sds import (
    SDS,
    Weighting,
    dreamfusion_weighting,
    eps_weighting,
    surrogate_loss,
    x0_weighting,
)
from core.frozen import freeze, parameter_sha256
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule, diffuse


def gauss_hermite(dimension: int, n: int) -> tuple[Tensor, Tensor]:
    """Nodes [N, D] and weights [N] of the expectation over standard normal noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    weights = weights / weights.sum()
    grids = np.meshgrid(*[nodes] * dimension, indexing="ij")
    products = np.meshgrid(*[weights] * dimension, indexing="ij")
    return (
        torch.from_numpy(np.stack([grid.ravel() for grid in grids], 1)),
        torch.from_numpy(np.prod([product.ravel() for product in products], axis=0)),
    )


def expected_gradient(sds: SDS, x: Tensor, t: float, nodes: int) -> Tensor:
    """E over eps of the SDS gradient at one image x [D]."""
    eps, weights = gauss_hermite(len(x), nodes)
    n = len(eps)
    gradient = sds.gradient_at(x.expand(n, -1), torch.full((n,), t, dtype=torch.float64), eps)
    return weights @ gradient


def kl_gradient_1d(mixture: GaussianMixture, schedule: NoiseSchedule, x: float, t: float) -> float:
    """d/dx KL(N(alpha x, sigma^2) || p_t) by adaptive quadrature of densities alone.

    The entropy does not depend on x, so it is -int dq/dx log p_t, and
    dq/dx = q alpha (y - alpha x) / sigma^2.
    """
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time).item(), schedule.sigma(time).item()
    weights, means, variances = (
        value.numpy().ravel() for value in (mixture.weights, mixture.means, mixture.covariances)
    )
    spread = np.sqrt(alpha**2 * variances + sigma**2)

    def integrand(z: float) -> float:
        density = np.sum(weights * stats.norm.pdf(alpha * x + sigma * z, alpha * means, spread))
        return -float(stats.norm.pdf(z)) * alpha * z / sigma * math.log(density)

    return integrate.quad(integrand, -12, 12, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


WEIGHTINGS: list[tuple[Weighting, str]] = [
    (x0_weighting, "1"),
    (eps_weighting, "alpha / sigma"),
    (dreamfusion_weighting, "alpha * sigma"),
]


@pytest.mark.parametrize(("weighting", "factor"), WEIGHTINGS)
@pytest.mark.parametrize("t", [0.3, 0.7])
def test_expectation_is_the_gradient_of_the_weighted_kl(
    mixture_1d: GaussianMixture, weighting: Weighting, factor: str, t: float
) -> None:
    schedule = VPSchedule(beta_max=8.0)
    sds = SDS(MixtureDenoiser(mixture_1d, schedule), weighting)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time).item(), schedule.sigma(time).item()
    weight = {"1": 1.0, "alpha / sigma": alpha / sigma, "alpha * sigma": alpha * sigma}[factor]
    for x in (-1.3, 0.1, 0.9):
        kl = kl_gradient_1d(mixture_1d, schedule, x, t)
        expected = weight * (sigma / alpha) ** 2 * kl
        computed = expected_gradient(sds, torch.tensor([x], dtype=torch.float64), t, 160)
        assert computed.item() == pytest.approx(expected, abs=1e-10)
        assert abs(expected) > 1e-3


def test_expectation_in_two_dimensions(mixture_2d: GaussianMixture) -> None:
    """The same with Stein's form of the KL's gradient, -E[(alpha/sigma) eps log p_t(x_t)]."""
    schedule = FlowSchedule()
    x = torch.tensor([0.4, -0.3], dtype=torch.float64)
    t = torch.tensor([0.6], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    eps, weights = gauss_hermite(2, 60)
    n = len(eps)
    log_density = mixture_2d.noised(alpha.expand(n), sigma.expand(n)).log_density(
        alpha * x + sigma * eps
    )
    kl_gradient = -(alpha / sigma) * ((weights * log_density) @ eps)
    sds = SDS(MixtureDenoiser(mixture_2d, schedule))
    computed = expected_gradient(sds, x, 0.6, 60)
    torch.testing.assert_close(computed, (sigma / alpha) ** 2 * kl_gradient, rtol=0, atol=1e-10)
    assert bool((computed.abs() > 1e-3).all())


def test_residual_is_sjcs_identity(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """x - D(x_t) = (sigma/alpha) (eps^ - eps) (SJC, arXiv 2212.00774)."""
    x, eps = (torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    eps_hat = denoiser(diffuse(schedule, x, eps, t), t).eps
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    for weighting, expected in (
        (x0_weighting, sigma / alpha * (eps_hat - eps)),
        (eps_weighting, eps_hat - eps),
        (dreamfusion_weighting, sigma**2 * (eps_hat - eps)),
    ):
        gradient = SDS(denoiser, weighting).gradient_at(x, t, eps)
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_the_x0_form_exists_at_both_ends(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    sds = SDS(MixtureDenoiser(mixture_2d, schedule))
    x, eps = (torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    gradient = sds.gradient_at(x, t, eps)
    # Without noise there is nothing to gain; with nothing else, the pull is to the mean.
    mean = mixture_2d.weights @ mixture_2d.means
    torch.testing.assert_close(gradient[0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(gradient[1], x[1] - mean)
    with pytest.raises(ValueError, match="sigma is 0"):
        SDS(sds.denoiser, eps_weighting).gradient_at(x, t, eps)


def test_guidance_is_the_denoisers(mixture_2d: GaussianMixture, generator: torch.Generator) -> None:
    """The gradient is linear in the prediction, so guided SDS mixes the two gradients."""
    denoiser = MixtureDenoiser(mixture_2d, FlowSchedule())
    x, eps = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.full((3,), 0.6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    cond = Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))
    guided = SDS(ClassifierFreeGuidance(denoiser, 5.0)).gradient_at(x, t, eps, cond)
    conditional = SDS(denoiser).gradient_at(x, t, eps, cond)
    unconditional = SDS(denoiser).gradient_at(x, t, eps, cond.uncond)
    torch.testing.assert_close(
        guided, unconditional + 5 * (conditional - unconditional), rtol=1e-10, atol=1e-10
    )


def test_noise_comes_from_the_generator(mixture_2d: GaussianMixture) -> None:
    sds = SDS(MixtureDenoiser(mixture_2d, FlowSchedule()))
    x = torch.zeros(3, 2, dtype=torch.float64)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    drawn = sds.gradient(x, t, None, torch.Generator().manual_seed(4))
    eps = torch.randn(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.equal(drawn, sds.gradient_at(x, t, eps))


def test_surrogate_carries_the_gradient_to_parameters(generator: torch.Generator) -> None:
    """Through any differentiable image, here a linear one: J^T g."""
    parameters = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    jacobian = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    gradient = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    x = (jacobian @ parameters).reshape(2, 3)
    loss = surrogate_loss(x, gradient)
    loss.backward()
    torch.testing.assert_close(parameters.grad, jacobian.T @ gradient.reshape(-1))
    assert loss.item() == pytest.approx(gradient.square().sum().item() / 2)
    with pytest.raises(ValueError, match="x's shape"):
        surrogate_loss(x, gradient[:1])


class TinyTeacher(nn.Module):
    """A denoiser with parameters, to watch whether anything reaches them."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = FlowSchedule()
        self.layer = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_x0(self.layer(x_t), x_t, t, self.schedule)


def test_no_gradient_reaches_the_teacher(generator: torch.Generator) -> None:
    teacher = TinyTeacher()
    freeze(teacher)
    # Even a teacher that someone forgot to freeze must stay as it is.
    teacher.layer.requires_grad_(True)
    before = parameter_sha256(teacher)
    pixels = torch.zeros(3, 2, requires_grad=True)
    optimiser = torch.optim.Adam([pixels], lr=0.1)
    sds = SDS(teacher)
    for _ in range(5):
        optimiser.zero_grad()
        gradient = sds.gradient(pixels, torch.full((3,), 0.5), None, generator)
        assert not gradient.requires_grad
        surrogate_loss(pixels, gradient).backward()
        optimiser.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert parameter_sha256(teacher) == before
    assert bool((pixels.detach() != 0).all())


def test_descent_finds_a_mode(mixture_2d: GaussianMixture) -> None:
    """SDS seeks modes: from anywhere it ends where its expected gradient vanishes."""
    sds = SDS(MixtureDenoiser(mixture_2d, FlowSchedule()))
    x = torch.tensor([1.5, 1.5], dtype=torch.float64)
    for _ in range(120):
        x = x - 0.5 * expected_gradient(sds, x, 0.3, 16)
    assert expected_gradient(sds, x, 0.3, 16).abs().max().item() < 1e-6
    # The heaviest component's mean is near; the mixture's mean, (0.14, 0.36), is not.
    assert (x - mixture_2d.means[1]).norm().item() < 0.25
