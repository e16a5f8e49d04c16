"""CDS on a Gaussian in closed form; consistency's residual; one noise for good."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from core.distillation.score.cds import CDS
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VPSchedule, diffuse
from core.solvers.ddim import ddim_step

MEAN, VARIANCE = 0.4, 0.3
GAUSSIAN = GaussianMixture(
    weights=torch.ones(1, dtype=torch.float64),
    means=torch.tensor([[MEAN]], dtype=torch.float64),
    covariances=torch.tensor([[VARIANCE]], dtype=torch.float64),
)
X = torch.tensor([[-1.2], [0.1], [0.9], [1.7]], dtype=torch.float64)
T = torch.tensor([0.4, 0.5, 0.6, 0.7], dtype=torch.float64)


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), VPSchedule(), CosineSchedule()], ids=lambda s: type(s).__name__
)
def test_on_a_gaussian_it_is_the_closed_form(schedule: NoiseSchedule) -> None:
    """In z = x_t / alpha with noise n = sigma / alpha: eps(z) = n (z - m) / (v + n^2), and the
    ODE's step is Euler's in n.
    """

    def eps_of(z: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return n * (z - MEAN) / (VARIANCE + n.square())

    interval = 0.2
    n_t, n_s = ((schedule.sigma(t) / schedule.alpha(t))[:, None] for t in (T, T - interval))
    noise = torch.full_like(X, 0.37)
    z_t = X + n_t * noise
    z_s = z_t + (n_s - n_t) * eps_of(z_t, n_t)
    expected = n_t * (eps_of(z_t, n_t) - eps_of(z_s, n_s))
    cds = CDS(denoiser=MixtureDenoiser(GAUSSIAN, schedule), interval=interval)
    torch.testing.assert_close(cds.gradient_at(X, T, noise), expected, rtol=1e-9, atol=1e-11)
    # Without noise the descent leads to the mean, where the data is densest.
    pull = cds.gradient_at(X, T, torch.zeros_like(X))
    assert torch.equal(pull.sign(), (X - MEAN).sign())


def test_it_is_the_residual_of_consistency(mixture_1d: GaussianMixture) -> None:
    """n_s gradient = n_t (D(x_s) - D(x_t))."""
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    cds = CDS(denoiser=denoiser, interval=0.1)
    s, eps = T - 0.1, cds.fixed_noise(X)
    at_t = denoiser(diffuse(schedule, X, eps, T), T)
    at_s = denoiser(ddim_step(at_t, s), s)
    n_t, n_s = ((schedule.sigma(t) / schedule.alpha(t))[:, None] for t in (T, s))
    gradient = cds.gradient(X, T, None, torch.Generator())
    torch.testing.assert_close(n_s * gradient, n_t * (at_s.x0 - at_t.x0))
    assert bool((gradient.abs() > 1e-4).all())


def test_it_is_of_the_order_of_the_interval(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    norms = [
        CDS(denoiser=denoiser, interval=interval).gradient(X, T, None, torch.Generator()).norm()
        for interval in (0.02, 0.01, 0.005)
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(norms)]
    assert slopes[-1] == pytest.approx(1.0, abs=0.1)


def test_the_noise_is_one_for_all_samples_steps_and_generators() -> None:
    cds = CDS(denoiser=MixtureDenoiser(GAUSSIAN, FlowSchedule()))
    x = torch.zeros(4, 3, dtype=torch.float64)
    noise = cds.fixed_noise(x)
    assert torch.equal(noise, noise[:1].expand(4, 3))
    assert torch.equal(noise[:2], cds.fixed_noise(x[:2]))
    other = CDS(denoiser=cds.denoiser, noise_seed=1).fixed_noise(x)
    assert not torch.equal(noise, other)
    first, second = (
        cds.gradient(X, T, None, torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="interval"):
        CDS(denoiser=cds.denoiser, interval=1.5)
