"""The oracle itself, against other ways to the same numbers: quadrature, autograd, scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser, NoisedMixture
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule, diffuse


def points(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    return 1.5 * torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def noised(mixture: GaussianMixture, alpha: list[float], sigma: list[float]) -> NoisedMixture:
    return mixture.noised(
        torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    )


ALPHAS = [1.0, 0.9, 0.5, 0.1, 0.0]
SIGMAS = [0.0, 0.3, 0.5, 2.0, 1.0]


def test_density_is_scipys(mixture_2d: GaussianMixture, generator: torch.Generator) -> None:
    x = points(5, 2, generator)
    computed = noised(mixture_2d, ALPHAS, SIGMAS).log_density(x)
    for sample, (alpha, sigma) in enumerate(zip(ALPHAS, SIGMAS, strict=True)):
        density = sum(
            weight
            * stats.multivariate_normal(
                alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(2)
            ).pdf(x[sample].numpy())
            for weight, mean, covariance in zip(
                mixture_2d.weights.numpy(),
                mixture_2d.means.numpy(),
                mixture_2d.covariances.numpy(),
                strict=True,
            )
        )
        assert computed[sample].item() == pytest.approx(math.log(density), rel=1e-10)


def test_score_is_the_densitys_gradient(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x = points(5, 2, generator).requires_grad_()
    view = noised(mixture_2d, ALPHAS, SIGMAS)
    (gradient,) = torch.autograd.grad(view.log_density(x).sum(), x)
    torch.testing.assert_close(view.score(x.detach()), gradient, rtol=1e-11, atol=1e-11)


def test_posterior_of_x0_by_quadrature(mixture_1d: GaussianMixture) -> None:
    """Bayes' rule integrated numerically over x0 in one dimension."""
    weights, means, variances = (
        value.numpy().ravel()
        for value in (mixture_1d.weights, mixture_1d.means, mixture_1d.covariances)
    )
    for alpha, sigma, x_t in ((0.7, 0.4, 0.3), (0.2, 1.1, -0.5), (0.95, 0.2, 1.4)):

        def joint(x0: float, power: int, alpha=alpha, sigma=sigma, x_t=x_t) -> float:
            prior = float(np.sum(weights * stats.norm.pdf(x0, means, np.sqrt(variances))))
            return x0**power * prior * float(stats.norm.pdf(x_t, alpha * x0, sigma))

        zeroth, first, second = (
            integrate.quad(joint, -6, 6, (power,), epsabs=1e-13, epsrel=1e-12, limit=200)[0]
            for power in range(3)
        )
        view = noised(mixture_1d, [alpha], [sigma])
        x = torch.tensor([[x_t]], dtype=torch.float64)
        mean = first / zeroth
        assert view.x0_mean(x).item() == pytest.approx(mean, abs=1e-10)
        assert view.x0_covariance(x).item() == pytest.approx(second / zeroth - mean**2, abs=1e-10)


def test_tweedies_formulas(mixture_2d: GaussianMixture, generator: torch.Generator) -> None:
    """E[x0] and Cov[x0] from the first and second derivatives of log p_t."""
    alpha, sigma = 0.6, 0.5
    x = points(4, 2, generator)
    view = noised(mixture_2d, [alpha] * 4, [sigma] * 4)
    mean = (x + sigma**2 * view.score(x)) / alpha
    torch.testing.assert_close(view.x0_mean(x), mean, rtol=1e-11, atol=1e-11)
    for sample in range(4):
        one = noised(mixture_2d, [alpha], [sigma])
        hessian = torch.autograd.functional.jacobian(
            lambda y, one=one: one.score(y[None])[0], x[sample]
        )
        covariance = (sigma / alpha) ** 2 * (torch.eye(2) + sigma**2 * hessian)
        torch.testing.assert_close(
            view.x0_covariance(x)[sample], covariance, rtol=1e-10, atol=1e-10
        )


def test_class_posterior_is_bayes_rule(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x = points(5, 2, generator)
    posterior = noised(mixture_2d, ALPHAS, SIGMAS).class_posterior(x)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for label in (0, 1):
        of_class = mixture_2d.noised(
            torch.tensor(ALPHAS, dtype=torch.float64),
            torch.tensor(SIGMAS, dtype=torch.float64),
            torch.full((5,), label),
        )
        evidence = noised(mixture_2d, ALPHAS, SIGMAS).log_density(x)
        expected = prior[label] * (of_class.log_density(x) - evidence).exp()
        torch.testing.assert_close(posterior[:, label], expected, rtol=1e-11, atol=1e-11)


def test_diagonal_and_full_covariances_agree(generator: torch.Generator) -> None:
    shared = {
        "weights": torch.tensor([1.0, 3.0], dtype=torch.float64),
        "means": torch.tensor([[0.0, 1.0, -1.0], [1.0, -0.5, 0.3]], dtype=torch.float64),
    }
    diagonal = torch.tensor([[0.1, 0.4, 0.2], [0.3, 0.2, 0.5]], dtype=torch.float64)
    thin = GaussianMixture(**shared, covariances=diagonal)
    full = GaussianMixture(**shared, covariances=torch.diag_embed(diagonal))
    x = points(5, 3, generator)
    for name in ("log_density", "score", "x0_mean", "x0_covariance", "v_prediction"):
        first = getattr(noised(thin, ALPHAS, SIGMAS), name)(x)
        second = getattr(noised(full, ALPHAS, SIGMAS), name)(x)
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_denoiser_gives_posterior_mean_and_score(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    x = points(5, 2, generator)
    view = mixture_2d.noised(schedule.alpha(t), schedule.sigma(t))
    prediction = MixtureDenoiser(mixture_2d, schedule)(x, t)
    torch.testing.assert_close(prediction.x0, view.x0_mean(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.score, view.score(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_denoiser_at_both_ends(
    schedule: NoiseSchedule, mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x = points(3, 2, generator)
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    at_data = denoiser(x, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(at_data.x0, x)
    torch.testing.assert_close(at_data.eps, torch.zeros_like(x))
    at_noise = denoiser(x, torch.ones(3, dtype=torch.float64))
    mean = (mixture_2d.weights @ mixture_2d.means).expand(3, 2)
    torch.testing.assert_close(at_noise.x0, mean)
    torch.testing.assert_close(at_noise.eps, x)


def test_denoising_error_is_orthogonal_to_any_function_of_x_t(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    """E[(x0 - D(x_t)) g(x_t)] = 0: what denoising score matching regresses to."""
    schedule = FlowSchedule()
    n = 200_000
    x0, _ = mixture_2d.sample(n, generator)
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    x_t = diffuse(schedule, x0, eps, t)
    error = x0 - MixtureDenoiser(mixture_2d, schedule)(x_t, t).x0
    for probe in (torch.ones_like(x_t), x_t, torch.sin(3 * x_t)):
        product = error * probe
        standard_error = product.std(0) / math.sqrt(n)
        assert bool((product.mean(0).abs() < 4.5 * standard_error).all())
        assert bool((standard_error < 5e-3).all())


def test_samples_have_the_mixtures_moments(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    n = 100_000
    x, component = mixture_2d.sample(n, generator)
    shares = torch.bincount(component, minlength=3).double() / n
    torch.testing.assert_close(shares, mixture_2d.weights, rtol=0, atol=0.007)
    for k in range(3):
        mine = x[component == k]
        torch.testing.assert_close(mine.mean(0), mixture_2d.means[k], rtol=0, atol=0.02)
        torch.testing.assert_close(mine.T.cov(), mixture_2d.covariances[k], rtol=0, atol=0.02)
    again, _ = mixture_2d.sample(n, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_samples_of_a_class(mixture_2d: GaussianMixture, generator: torch.Generator) -> None:
    labels = torch.tensor([0, 1, -1]).repeat(500)
    _, component = mixture_2d.sample(1500, generator, labels)
    assert set(component[0::3].tolist()) == {0}
    assert set(component[1::3].tolist()) == {1, 2}
    assert set(component[2::3].tolist()) == {0, 1, 2}


def test_labels_pick_components_sample_by_sample(
    mixture_2d: GaussianMixture, generator: torch.Generator
) -> None:
    x = points(3, 2, generator)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    cond = Conditioning(labels=torch.tensor([0, 1, -1]))
    picked = MixtureDenoiser(mixture_2d, FlowSchedule())(x, t, cond).x0
    for sample, kept in enumerate(([0], [1, 2], [0, 1, 2])):
        part = GaussianMixture(
            weights=mixture_2d.weights[kept],
            means=mixture_2d.means[kept],
            covariances=mixture_2d.covariances[kept],
        )
        alone = MixtureDenoiser(part, FlowSchedule())(x[sample : sample + 1], t[:1]).x0
        torch.testing.assert_close(picked[sample : sample + 1], alone, rtol=1e-12, atol=1e-12)


def test_point_masses_denoise_to_themselves(generator: torch.Generator) -> None:
    dirac = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[0.3, -0.7]], dtype=torch.float64),
        covariances=torch.zeros(1, 2, dtype=torch.float64),
    )
    x = points(4, 2, generator)
    t = torch.tensor([0.01, 0.3, 0.9, 1.0], dtype=torch.float64)
    x0 = MixtureDenoiser(dirac, FlowSchedule())(x, t).x0
    torch.testing.assert_close(x0, dirac.means.expand(4, 2), rtol=1e-12, atol=1e-12)
    assert torch.equal(dirac.sample(4, generator)[0], dirac.means.expand(4, 2))
    with pytest.raises(ValueError, match="point mass"):
        MixtureDenoiser(dirac, FlowSchedule())(x, torch.zeros(4, dtype=torch.float64))


def test_singular_full_covariance_is_allowed() -> None:
    line = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    mixture = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.zeros(1, 2, dtype=torch.float64),
        covariances=line,
    )
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    t = torch.full((1,), 0.5, dtype=torch.float64)
    # The posterior lies on the line, and x is orthogonal to it.
    x0 = MixtureDenoiser(mixture, FlowSchedule())(x, t).x0
    torch.testing.assert_close(x0, torch.zeros_like(x), rtol=0, atol=1e-14)


def test_single_precision_input_keeps_its_dtype(mixture_2d: GaussianMixture) -> None:
    x = torch.tensor([[0.2, -0.4]])
    t = torch.tensor([0.3])
    denoiser = MixtureDenoiser(mixture_2d, VPSchedule())
    single = denoiser(x, t).x0
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), denoiser(x.double(), t.double()).x0, rtol=1e-5, atol=1e-5
    )
    assert mixture_2d.to(dtype=torch.float32).means.dtype == torch.float32


def test_bad_mixtures_are_refused(mixture_2d: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="weights"):
        replace(mixture_2d, weights=torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(ValueError, match="covariances must have shape"):
        replace(mixture_2d, covariances=torch.ones(3))
    with pytest.raises(ValueError, match="semidefinite"):
        replace(mixture_2d, covariances=-mixture_2d.covariances)
    with pytest.raises(ValueError, match="labels"):
        replace(mixture_2d, labels=torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match=r"label 5; there are \[0, 1\]"):
        mixture_2d.noised(torch.ones(1), torch.ones(1), torch.tensor([5]))
