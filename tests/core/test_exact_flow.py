"""The exact flow map: against closed forms, the other method, and its own defining equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import FlowSchedule, NoiseSchedule, VESchedule


def filled(n: int, value: float) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def grid(n: int = 21) -> Tensor:
    return torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]


def test_a_single_gaussians_map_is_affine(
    schedule: NoiseSchedule, generator: torch.Generator
) -> None:
    """In any dimension: each eigenvector's coordinate scales with its standard deviation."""
    covariance = torch.tensor([[0.5, 0.2, 0], [0.2, 0.3, 0.1], [0, 0.1, 0.2]], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    mixture = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64), means=mean[None], covariances=covariance[None]
    )
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    s = torch.tensor([0.2, 0.95, 0.02], dtype=torch.float64)
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    variances, axes = torch.linalg.eigh(covariance)
    alpha_t, sigma_t, alpha_s, sigma_s = (
        value[:, None]
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s))
    )
    ratio = (alpha_s**2 * variances + sigma_s**2) / (alpha_t**2 * variances + sigma_t**2)
    expected = alpha_s * mean + (((x - alpha_t * mean) @ axes) * ratio.sqrt()) @ axes.T
    mapped = ExactFlowMap(mixture, schedule)(x, t, s)
    torch.testing.assert_close(mapped, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), VESchedule(sigma_min=0.05, sigma_max=20.0)], ids=["flow", "ve"]
)
def test_integration_agrees_with_the_quantile_map(
    schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    """A product with a Gaussian second axis is integrated; its first axis has the quantile map."""
    product = GaussianMixture(
        weights=mixture_1d.weights,
        means=torch.cat([mixture_1d.means, torch.zeros(3, 1)], 1),
        covariances=torch.cat([mixture_1d.covariances, torch.full((3, 1), 0.4)], 1),
    )
    n = len(grid())
    x = torch.cat([grid(), grid().flip(0)], 1) * schedule.sigma(filled(1, 0.95)).clamp(min=1)
    t, s = filled(n, 0.95), filled(n, 0.05)
    integrated = ExactFlowMap(product, schedule)(x, t, s)[:, :1]
    by_quantile = ExactFlowMap(mixture_1d, schedule)(x[:, :1], t, s)
    torch.testing.assert_close(integrated, by_quantile, rtol=1e-10, atol=1e-10)


def test_quantile_map_follows_the_velocity(
    schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    """d/ds Phi_{t->s}(x) is the denoiser's velocity at (Phi, s): the ODE itself."""
    flow_map = ExactFlowMap(mixture_1d, schedule)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    n, step = len(grid()), 1e-5
    t = filled(n, 0.8)
    for now in (0.30035, 0.6003):
        s = filled(n, now)
        ahead, here, behind = (flow_map(grid(), t, s + shift) for shift in (step, 0.0, -step))
        velocity = denoiser(here, s).velocity
        torch.testing.assert_close((ahead - behind) / (2 * step), velocity, rtol=1e-6, atol=1e-6)


def test_semigroup_and_inverse(schedule: NoiseSchedule, mixture_1d: GaussianMixture) -> None:
    flow_map = ExactFlowMap(mixture_1d, schedule)
    n = len(grid())
    t, u, s = filled(n, 0.9), filled(n, 0.4), filled(n, 0.1)
    direct = flow_map(grid(), t, s)
    torch.testing.assert_close(flow_map(flow_map(grid(), t, u), u, s), direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow_map(direct, s, t), grid(), rtol=0, atol=1e-11)
    torch.testing.assert_close(flow_map(grid(), t, t), grid(), rtol=0, atol=1e-14)


def test_from_pure_noise_to_data(mixture_1d: GaussianMixture, mixture_2d: GaussianMixture) -> None:
    """Both ends of a schedule that includes them; the noise's quantiles become the data's."""
    n = 4001
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    noise = torch.special.ndtri(levels)[:, None]
    data = ExactFlowMap(mixture_1d, FlowSchedule())(noise, filled(n, 1), filled(n, 0))
    assert bool((data.diff(dim=0) > 0).all())
    mean = (mixture_1d.weights @ mixture_1d.means).item()
    second = (mixture_1d.weights @ (mixture_1d.covariances + mixture_1d.means**2)).item()
    assert data.mean().item() == pytest.approx(mean, abs=1e-4)
    assert data.square().mean().item() == pytest.approx(second, abs=1e-3)
    x = torch.tensor([[0.3, -1.0], [1.2, 0.4]], dtype=torch.float64)
    flow_map = ExactFlowMap(mixture_2d, FlowSchedule())
    there = flow_map(x, filled(2, 1), filled(2, 0))
    torch.testing.assert_close(flow_map(there, filled(2, 0), filled(2, 1)), x, rtol=1e-9, atol=1e-9)


def test_far_tails_stay_exact(mixture_1d: GaussianMixture) -> None:
    """Thirty standard deviations out, where 1 - F is 0 in floating point, a component rules."""
    x = torch.tensor([[-30.0], [30.0]], dtype=torch.float64)
    flow_map = ExactFlowMap(mixture_1d, FlowSchedule())
    there = flow_map(x, filled(2, 1), filled(2, 0.2))
    back = flow_map(there, filled(2, 0.2), filled(2, 1))
    torch.testing.assert_close(back, x, rtol=1e-12, atol=0)


def test_labels_choose_the_flow(mixture_1d: GaussianMixture) -> None:
    x, t, s = grid(), filled(21, 0.9), filled(21, 0.1)
    cond = Conditioning(labels=torch.tensor([0] * 10 + [1] * 11))
    picked = ExactFlowMap(mixture_1d, FlowSchedule())(x, t, s, cond)
    for rows, kept in ((slice(0, 10), [0]), (slice(10, 21), [1, 2])):
        part = GaussianMixture(
            weights=mixture_1d.weights[kept],
            means=mixture_1d.means[kept],
            covariances=mixture_1d.covariances[kept],
        )
        alone = ExactFlowMap(part, FlowSchedule())(x[rows], t[rows], s[rows])
        torch.testing.assert_close(picked[rows], alone, rtol=1e-12, atol=1e-12)


def test_dtype_is_the_inputs(mixture_1d: GaussianMixture) -> None:
    x = torch.tensor([[0.5]])
    mapped = ExactFlowMap(mixture_1d, VESchedule())(x, torch.tensor([0.5]), torch.tensor([0.2]))
    assert mapped.dtype == torch.float32
