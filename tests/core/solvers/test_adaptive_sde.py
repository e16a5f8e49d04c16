"""The adaptive SDE solver: its pair, its noise when it rejects, what it converges to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, VPSchedule, noise_like
from core.solvers.adaptive_sde import AdaptiveSDEConfig, _BrownianPath, sample_adaptive
from core.solvers.euler_maruyama import sde_coefficients

START, END = 0.9, 0.05


def tolerance(value: float, *, first_step: float = 0.01) -> AdaptiveSDEConfig:
    return AdaptiveSDEConfig(
        absolute_tolerance=value, relative_tolerance=0.0, first_step=first_step
    )


def noised_data(
    mixture: GaussianMixture, schedule: NoiseSchedule, n: int, generator: torch.Generator
) -> Tensor:
    """n draws of x at START."""
    data, _ = mixture.sample(n, generator)
    at = torch.tensor(START, dtype=torch.float64)
    return schedule.alpha(at) * data + schedule.sigma(at) * noise_like(data, generator)


def distance_to_exact(x: Tensor, mixture: GaussianMixture, schedule: NoiseSchedule) -> float:
    """Kolmogorov's: the largest difference of the samples' distribution from that at END."""
    at = torch.tensor(END, dtype=torch.float64)
    alpha, sigma = schedule.alpha(at), schedule.sigma(at)
    std = (alpha.square() * mixture.covariances[:, 0] + sigma.square()).sqrt()
    ordered = x[:, 0].sort().values
    normal = torch.special.ndtr((ordered[:, None] - alpha * mixture.means[:, 0]) / std)
    exact = normal @ mixture.weights
    ranks = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return max((exact - ranks[:-1]).abs().max().item(), (exact - ranks[1:]).abs().max().item())


def test_a_step_is_the_stochastic_improved_euler_of_the_pair(
    main_schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)
    t, s = (torch.full((9,), value, dtype=torch.float64) for value in (0.5, 0.42))
    noise = math.sqrt(0.5 - 0.42) * noise_like(x, torch.Generator().manual_seed(5))

    def rates(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        f, g_squared = sde_coefficients(main_schedule, t)
        noised = mixture_1d.noised(main_schedule.alpha(t), main_schedule.sigma(t))
        return f[:, None] * x - g_squared[:, None] * noised.score(x), g_squared[:, None].sqrt()

    drift, diffusion = rates(x, t)
    euler = x - 0.08 * drift + diffusion * noise
    later_drift, later_diffusion = rates(euler, s)
    improved = x - 0.04 * (drift + later_drift) + (diffusion + later_diffusion) / 2 * noise
    for allowed in (1e9, (improved - euler).abs().max().item() * 1.001):
        reached = sample_adaptive(
            denoiser,
            x,
            start=0.5,
            end=0.42,
            generator=torch.Generator().manual_seed(5),
            config=tolerance(allowed, first_step=1.0),
        )
        torch.testing.assert_close(reached.x, improved, rtol=1e-9, atol=1e-9)
        assert reached.nfe == 2
        assert reached.accepted.tolist() == [1] * 9
        assert reached.rejected.tolist() == [0] * 9
    # Just below its largest error, the one step of that sample is rejected, and only that.
    below = sample_adaptive(
        denoiser,
        x,
        start=0.5,
        end=0.42,
        generator=torch.Generator().manual_seed(5),
        config=tolerance((improved - euler).abs().max().item() * 0.999, first_step=1.0),
    )
    worst = (improved - euler).abs().argmax().item()
    assert (below.rejected > 0).nonzero()[:, 0].tolist() == [worst]
    others = [each for each in range(9) if each != worst]
    torch.testing.assert_close(below.x[others], improved[others], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("allowed", [0.02, 0.005])
def test_it_recovers_a_mixture_as_the_tolerance_falls(
    main_schedule: NoiseSchedule,
    mixture_1d: GaussianMixture,
    generator: torch.Generator,
    allowed: float,
) -> None:
    n = 4000
    x = noised_data(mixture_1d, main_schedule, n, generator)
    denoiser = MixtureDenoiser(mixture_1d, main_schedule)

    def run(allowed: float) -> Tensor:
        return sample_adaptive(
            denoiser, x, start=START, end=END, generator=generator, config=tolerance(allowed)
        ).x

    found = run(allowed)
    at = torch.tensor(END, dtype=torch.float64)
    alpha, sigma = main_schedule.alpha(at).item(), main_schedule.sigma(at).item()
    mean = (mixture_1d.weights @ mixture_1d.means).item()
    second = (mixture_1d.weights @ (mixture_1d.covariances + mixture_1d.means**2)).item()
    variance = alpha**2 * (second - mean**2) + sigma**2
    assert found.mean().item() == pytest.approx(alpha * mean, abs=4 * math.sqrt(variance / n))
    # The mixture's fourth moment is below a normal's: so is the error of its variance.
    assert found.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    # One chance in a thousand for samples of the very distribution.
    assert distance_to_exact(found, mixture_1d, main_schedule) < 1.95 / math.sqrt(n)
    # And a lax one does not: what is measured here can fail.
    assert distance_to_exact(run(1.0), mixture_1d, main_schedule) > 1.4 * 1.95 / math.sqrt(n)


def test_it_rejects_as_the_tolerance_falls(
    mixture_1d: GaussianMixture, generator: torch.Generator
) -> None:
    schedule = VPSchedule()
    x = noised_data(mixture_1d, schedule, 64, generator)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    runs = [
        sample_adaptive(
            denoiser,
            x,
            start=START,
            end=END,
            generator=generator,
            config=tolerance(allowed, first_step=0.2),
        )
        for allowed in (1e6, 0.1, 0.01)
    ]
    assert runs[0].rejected.sum() == 0
    assert bool((runs[2].rejected > 0).all())
    assert runs[0].nfe < runs[1].nfe < runs[2].nfe
    assert runs[1].accepted.sum() < runs[2].accepted.sum()
    # Each sample in its own steps, and the slowest one counts.
    assert len(runs[2].accepted.unique()) > 1
    slowest = (runs[2].accepted + runs[2].rejected).max().item()
    assert runs[2].nfe == 2 * slowest


def test_noise_once_drawn_is_kept(generator: torch.Generator) -> None:
    """A step of 1 rejected, then 0.3, 0.2 of the rest rejected for 0.1, and so to the end."""
    n = 20_000
    path = _BrownianPath(torch.zeros(n, 1, dtype=torch.float64), generator)
    t = torch.ones(n, dtype=torch.float64)
    _, whole = path.draw(t, 0 * t)
    walked = []
    path.draw(t, 0.7 * t)
    s, first = path.draw(t, 0.7 * t)
    assert bool((s == 0.7).all())
    path.leave(torch.ones(n, dtype=torch.bool))
    walked.append(first)
    path.draw(s, 0.5 * t)
    s, second = path.draw(s, 0.6 * t)
    path.leave(torch.ones(n, dtype=torch.bool))
    walked.append(second)
    for end in (0.5, 0.0):
        # What was drawn ahead ends the step, though more is asked for.
        s, change = path.draw(s, -t)
        assert bool((s == end).all())
        path.leave(torch.ones(n, dtype=torch.bool))
        walked.append(change)
    torch.testing.assert_close(sum(walked), whole, rtol=1e-12, atol=1e-12)
    covariance = torch.cov(torch.cat(walked, 1).T)
    wanted = torch.diag(torch.tensor([0.3, 0.1, 0.1, 0.5], dtype=torch.float64))
    torch.testing.assert_close(covariance, wanted, rtol=0, atol=4 * 0.5 * math.sqrt(2 / n))


def test_samples_walk_their_noise_apart(generator: torch.Generator) -> None:
    path = _BrownianPath(torch.zeros(2, 3, dtype=torch.float64), generator)
    t = torch.ones(2, dtype=torch.float64)
    _, whole = path.draw(t, 0 * t)
    path.leave(torch.tensor([True, False]))
    # The first is at 0 and goes on, the second tries again, shorter.
    s, part = path.draw(torch.tensor([0.0, 1.0]).double(), torch.tensor([-1.0, 0.5]).double())
    assert s.tolist() == [-1.0, 0.5]
    path.leave(torch.tensor([True, True]))
    s, rest = path.draw(s, torch.tensor([-2.0, -2.0]).double())
    assert s.tolist() == [-2.0, 0.0]
    torch.testing.assert_close(part[1] + rest[1], whole[1])
    assert not torch.allclose(part[0] + rest[0], whole[0])


class Pictures:
    """The denoiser of black pictures, in x_t's dtype; `spoil` makes it answer NaN."""

    schedule = FlowSchedule()

    def __init__(self, *, spoil: bool = False) -> None:
        self.factor = math.nan if spoil else 0.0
        self.seen: list[Conditioning | None] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.seen.append(cond)
        return Prediction.from_x0(self.factor * x_t, x_t, t, self.schedule)


def test_pictures_in_single_precision(generator: torch.Generator) -> None:
    x = 0.9 * torch.randn(2, 3, 4, 4, generator=generator)
    denoiser = Pictures()
    cond = Conditioning(labels=torch.tensor([0, 1]))
    found = sample_adaptive(denoiser, x, start=0.9, end=0.02, generator=generator, cond=cond)
    assert found.x.shape == x.shape
    assert found.x.dtype == torch.float32
    # x0 = 0: what is left is the noise of t = 0.02.
    assert found.x.std().item() == pytest.approx(0.02, rel=0.35)
    assert len(denoiser.seen) == found.nfe
    assert all(each is cond for each in denoiser.seen)


def test_misuse_is_refused(generator: torch.Generator) -> None:
    x = torch.ones(2, 1, dtype=torch.float64)
    cases: list[tuple[str, Any]] = [
        ("absolute_tolerance", 0.0),
        ("relative_tolerance", -1.0),
        ("first_step", 0.0),
        ("safety", 1.0),
        ("exponent", 0.1),
        ("max_tries", 0),
    ]
    for name, value in cases:
        with pytest.raises(ValueError, match=name):
            AdaptiveSDEConfig(**{name: value})
    with pytest.raises(ValueError, match="start"):
        sample_adaptive(Pictures(), x, start=0.1, end=0.5, generator=generator)
    with pytest.raises(ValueError, match="infinite"):
        sample_adaptive(Pictures(), x, start=1.0, end=0.5, generator=generator)
    with pytest.raises(RuntimeError, match="diverged"):
        sample_adaptive(Pictures(spoil=True), x, start=0.9, end=0.5, generator=generator)
    few = AdaptiveSDEConfig(max_tries=3)
    with pytest.raises(RuntimeError, match="in 3 tries"):
        sample_adaptive(Pictures(), x, start=0.9, end=0.1, generator=generator, config=few)
