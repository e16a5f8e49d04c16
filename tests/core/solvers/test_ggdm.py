"""GGDM and its search: DDIM to start with, exact gradients, better than DDIM after a while."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, VPSchedule, diffuse, noise_like
from core.solvers.ddim import DDIM
from core.solvers.ggdm import GGDM, SearchConfig, kernel_distance, search_sampler
from core.solvers.sampling import Solver, sample


def grid() -> Tensor:
    return torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]


def few_times(steps: int = 4) -> Tensor:
    return torch.linspace(0.95, 0.02, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_it_starts_as_ddim(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, eta: float
) -> None:
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    solvers: list[Solver[Any]] = [GGDM.from_ddim(main_schedule, few_times(), eta), DDIM(eta=eta)]
    ours, ddim = (
        sample(denoiser, each, few_times(), grid(), generator=torch.Generator().manual_seed(0))
        for each in solvers
    )
    assert ours.nfe == 4
    torch.testing.assert_close(ours.x, ddim.x, rtol=1e-10, atol=1e-10)


def test_a_step_reads_every_state_so_far(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    times = few_times(2)
    # What lies above the diagonal is not read.
    of_states = torch.tensor([[0.5, 99.0], [0.3, 0.2]], dtype=torch.float64)
    of_x0 = torch.tensor([0.4, 0.6], dtype=torch.float64)
    solver = GGDM(times=times, of_states=of_states, of_x0=of_x0, of_noise=0 * of_x0)
    path = sample(denoiser, solver, times, grid())
    first = 0.5 * grid() + 0.4 * denoiser(grid(), times[0].expand(9)).x0
    second = 0.3 * grid() + 0.2 * first + 0.6 * denoiser(first, times[1].expand(9)).x0
    torch.testing.assert_close(path.states[1], first)
    torch.testing.assert_close(path.x, second)


def test_gradients_of_the_kernel_distance_are_finite_differences(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = VPSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    data, _ = mixture_1d.sample(7, generator)
    start = GGDM.from_ddim(schedule, few_times(3), eta=0.5)

    def distance(of_states: Tensor, of_x0: Tensor, of_noise: Tensor) -> Tensor:
        solver = replace(start, of_states=of_states, of_x0=of_x0, of_noise=of_noise)
        noise = torch.Generator().manual_seed(2)
        return kernel_distance(
            sample(denoiser, solver, start.times, grid(), generator=noise).x, data
        )

    leaves = [
        each.clone().requires_grad_() for each in (start.of_states, start.of_x0, start.of_noise)
    ]
    assert torch.autograd.gradcheck(distance, leaves)
    gradients = torch.autograd.grad(distance(*leaves), leaves)
    # All that is read has a part in it, and nothing above the diagonal.
    assert bool((gradients[0].tril().abs() > 0).sum() == 6)
    assert bool((gradients[0].triu(1) == 0).all())
    assert all(bool((gradient != 0).all()) for gradient in gradients[1:])


def test_the_kernel_distance_is_kids_without_bias(generator: torch.Generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64) + 0.5

    def kernel(a: Tensor, b: Tensor) -> float:
        return (a.dot(b).item() / 3 + 1) ** 3

    of_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    of_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(kernel(a, b) for a in x for b in y) / 20
    assert kernel_distance(x, y).item() == pytest.approx(of_x + of_y - 2 * across)
    for other in (x, 30 * x):
        squares = sum(kernel(a, b) for a in other for b in other) / 16
        crossed = sum(kernel(a, b) for a in other for b in y) / 20
        own = sum(kernel(a, b) for a in y for b in y) / 25
        found = kernel_distance(other, y, unbiased=False).item()
        assert found == pytest.approx(squares + own - 2 * crossed)
        assert found > 0
    draws = torch.randn(2000, 2, 6, 1, generator=generator, dtype=torch.float64)
    same = torch.func.vmap(lambda pair: kernel_distance(pair[0], pair[1]))(draws)
    error = same.std().item() / math.sqrt(len(same))
    assert same.mean().item() == pytest.approx(0, abs=4 * error)


def test_the_search_beats_ddim(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    """On data and noise that the search has not seen."""
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    start = GGDM.from_ddim(main_schedule, few_times(3))
    data, _ = mixture_1d.sample(2048, generator)
    found = search_sampler(
        start, denoiser, data, generator, config=SearchConfig(rounds=120, batch_size=256)
    )
    fresh, _ = mixture_1d.sample(8000, generator)
    first = start.times[:1].expand(4000)
    x = diffuse(main_schedule, fresh[:4000], noise_like(fresh[:4000], generator), first)

    def distance(solver: GGDM) -> float:
        return kernel_distance(sample(denoiser, solver, start.times, x).x, fresh[4000:]).item()

    assert distance(found) < 0.3 * distance(start)
    assert bool((found.of_noise == 0).all())
    assert not found.of_states.requires_grad


def test_the_search_learns_noise_and_follows_the_conditioning(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = FlowSchedule()
    seen: list[Tensor] = []

    class Watched:
        def __init__(self) -> None:
            self.schedule = schedule
            self.denoiser = MixtureDenoiser(mixture_1d, schedule)

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            assert cond is not None
            assert cond.labels is not None
            seen.append(cond.labels)
            return self.denoiser(x_t, t, cond)

    labels = torch.randint(2, (512,), generator=generator)
    data, _ = mixture_1d.sample(512, generator, labels)
    start = GGDM.from_ddim(schedule, few_times(3), eta=1.0)
    found = search_sampler(
        start,
        Watched(),
        data,
        generator,
        config=SearchConfig(rounds=20, batch_size=64, check_every=1),
        cond=Conditioning(labels=labels),
    )
    # The first look is at the first half of the data, in order; then come batches.
    assert torch.equal(seen[0], labels[:256])
    assert {len(each) for each in seen} == {256, 64}
    assert not torch.equal(found.of_noise, start.of_noise)


def test_a_search_that_goes_astray_returns_what_it_was_given(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = FlowSchedule()
    start = GGDM.from_ddim(schedule, few_times(3))
    data, _ = mixture_1d.sample(64, generator)
    found = search_sampler(
        start,
        MixtureDenoiser(mixture_1d, schedule),
        data,
        generator,
        config=SearchConfig(rounds=4, batch_size=16, learning_rate=50.0, check_every=1),
    )
    assert torch.equal(found.of_states, start.of_states)
    assert torch.equal(found.of_x0, start.of_x0)


def test_misuse_is_refused(mixture_1d: GaussianMixture, generator: torch.Generator) -> None:
    schedule = FlowSchedule()
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    times = few_times(2)
    solver = GGDM.from_ddim(schedule, times)
    with pytest.raises(ValueError, match="own times"):
        sample(denoiser, solver, few_times(3), grid())
    longer = torch.cat([times, torch.tensor([0.01], dtype=torch.float64)])
    with pytest.raises(ValueError, match="own times"):
        sample(denoiser, solver, longer, grid())
    with pytest.raises(ValueError, match="generator"):
        sample(denoiser, GGDM.from_ddim(schedule, times, eta=1.0), times, grid())
    with pytest.raises(ValueError, match="fall"):
        GGDM.from_ddim(schedule, times.flip(0))
    with pytest.raises(ValueError, match="of_states"):
        replace(solver, of_states=solver.of_states[:1])
    with pytest.raises(ValueError, match="two batches"):
        search_sampler(solver, denoiser, grid(), generator)
    cases: list[tuple[str, Any]] = [
        ("rounds", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("check_every", 0),
    ]
    for name, value in cases:
        with pytest.raises(ValueError, match=name):
            SearchConfig(**{name: value})
