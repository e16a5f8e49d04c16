"""The dynamic programme: brute force, more steps never cost more, KL costs of a mixture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule
from core.solvers.dp_schedule import dp_schedule, kl_costs, x0_squared_error


def brute_force(costs: Tensor, steps: int) -> float:
    n = len(costs)
    return min(
        sum(costs[i, j].item() for i, j in itertools.pairwise((0, *inner, n - 1)))
        for inner in itertools.combinations(range(1, n - 1), steps - 1)
    )


def mixture_errors(mixture: GaussianMixture, schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """E Var[x0 | x_t] of a mixture in one dimension [N], by quadrature over x_t."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    errors = []
    for time in times:
        t = time.expand(len(x))
        noised = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        variance = noised.x0_covariance(x)[:, 0, 0]
        errors.append(torch.trapezoid(noised.log_density(x).exp() * variance, x[:, 0]))
    return torch.stack(errors)


def test_it_is_brute_force_over_all_subsets(generator: torch.Generator) -> None:
    costs = torch.rand(9, 9, generator=generator, dtype=torch.float64)
    for steps in range(1, 9):
        found = dp_schedule(costs, steps)
        assert len(found.indices) == steps + 1
        assert (found.indices[0], found.indices[-1]) == (0, 8)
        assert bool((found.indices.diff() > 0).all())
        walked = costs[found.indices[:-1], found.indices[1:]].sum().item()
        assert found.total == pytest.approx(walked)
        assert found.total == pytest.approx(brute_force(costs, steps))


def test_infinite_steps_are_avoided(generator: torch.Generator) -> None:
    costs = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    costs[0, 1:3] = math.inf
    costs[0, 5] = math.inf
    assert dp_schedule(costs, 2).indices[1].item() in (3, 4)
    with pytest.raises(ValueError, match="No path"):
        dp_schedule(costs, 1)
    with pytest.raises(ValueError, match="No path"):
        dp_schedule(costs, 5)


def test_more_steps_of_a_mixture_never_cost_more_and_the_best_beat_even_ones(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    times = torch.linspace(0.95, 0.05, 31, dtype=torch.float64)
    costs = kl_costs(main_schedule, times, mixture_errors(mixture_1d, main_schedule, times))
    totals = [dp_schedule(costs, steps).total for steps in range(1, 31)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(totals))
    assert totals[-1] < 0.5 * totals[0]
    even = torch.arange(0, 31, 6)
    assert totals[4] < 0.9 * costs[even[:-1], even[1:]].sum().item()


def test_a_cost_is_the_kl_of_the_two_gaussians() -> None:
    """DDPM's posterior in its own alpha-bar, for a known x0 and another in its place."""
    schedule = CosineSchedule()
    times = torch.tensor([0.7, 0.4], dtype=torch.float64)
    bar_t, bar_s = schedule.alpha(times).square().tolist()
    step_alpha = bar_t / bar_s
    variance = (1 - bar_s) / (1 - bar_t) * (1 - step_alpha)

    def posterior(x0: float) -> torch.distributions.Normal:
        mean = math.sqrt(bar_s) * (1 - step_alpha) / (1 - bar_t) * x0
        mean += math.sqrt(step_alpha) * (1 - bar_s) / (1 - bar_t) * -0.4
        return torch.distributions.Normal(
            torch.tensor(mean).double(), torch.tensor(variance).sqrt().double()
        )

    kl = torch.distributions.kl_divergence(posterior(0.9), posterior(0.2)).item()
    squared = torch.tensor([0.7**2, 123.0], dtype=torch.float64)
    costs = kl_costs(schedule, times, squared)
    assert costs[0, 1].item() == pytest.approx(kl, rel=1e-6)
    assert torch.isinf(costs[[0, 1, 1], [0, 0, 1]]).all()


def test_the_estimated_error_is_the_mixtures(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    times = torch.tensor([0.8, 0.5, 0.2], dtype=torch.float64)
    n = 20_000
    data, _ = mixture_1d.sample(n, generator)
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    found = x0_squared_error(denoiser, data, times, generator)
    exact = mixture_errors(mixture_1d, main_schedule, times)
    # Four standard errors, if squares spread as a normal's do, by a factor of two on top.
    torch.testing.assert_close(found, exact, rtol=8 * math.sqrt(2 / n), atol=0)


def test_errors_are_summed_over_a_samples_elements(generator: torch.Generator) -> None:
    """A point mass beside the data: D is wrong by (1, 2) everywhere."""
    schedule = FlowSchedule()
    point = GaussianMixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        covariances=torch.zeros(1, 2, dtype=torch.float64),
    )
    found = x0_squared_error(
        MixtureDenoiser(point, schedule),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
        generator,
    )
    assert found.item() == pytest.approx(5.0)


def test_misuse_is_refused() -> None:
    costs = torch.ones(4, 4, dtype=torch.float64)
    for steps in (0, 4):
        with pytest.raises(ValueError, match="1 to 3 steps"):
            dp_schedule(costs, steps)
    with pytest.raises(ValueError, match="shape"):
        dp_schedule(costs[:3], 1)
    with pytest.raises(ValueError, match="NaN"):
        dp_schedule(costs * math.nan, 1)
    times = torch.tensor([0.5, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="infinite"):
        kl_costs(FlowSchedule(), times, torch.ones(2))
    with pytest.raises(ValueError, match="fall"):
        kl_costs(FlowSchedule(), times.flip(0), torch.ones(2))
