"""SJC against the score of the perturbed data, by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.score.sds import SDS, eps_weighting
from core.distillation.score.sjc import SJC
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule, VPSchedule


def hermite(n: int = 80) -> tuple[Tensor, Tensor]:
    """Nodes [n, 1] and weights [n] of the expectation over one standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes)[:, None], torch.from_numpy(weights / weights.sum())


SCHEDULES = [FlowSchedule(), VPSchedule(), CosineSchedule(), VESchedule(sigma_min=0.1)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_perturbed_pull_averages_to_the_perturbed_score(
    schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    """-gradient / n^2 = E[grad log p_n(x + n eps)], p_n the data with noise n = sigma/alpha."""
    eps, weights = hermite()
    t = torch.full((len(eps),), 0.35, dtype=torch.float64)
    n = schedule.sigma(t) / schedule.alpha(t)
    perturbed = mixture_1d.noised(torch.ones_like(t), n)
    sjc = SJC(MixtureDenoiser(mixture_1d, schedule))
    for x in (-1.4, 0.2, 1.0):
        image = torch.full_like(eps, x)
        paas = weights @ (-sjc.gradient_at(image, t, eps)) / n[0].square()
        score = weights @ perturbed.score(image + n[:, None] * eps)
        torch.testing.assert_close(paas, score, rtol=1e-9, atol=1e-10)
        assert abs(score.item()) > 1e-4


def test_the_papers_gradient_is_the_eps_weighting(mixture_1d: GaussianMixture) -> None:
    """(x - D(x + n eps)) / n."""
    schedule = VPSchedule()
    eps, _ = hermite(12)
    t = torch.full((12,), 0.4, dtype=torch.float64)
    n = (schedule.sigma(t) / schedule.alpha(t))[:, None]
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    image = torch.full_like(eps, 0.7)
    plain = SJC(denoiser).gradient_at(image, t, eps)
    weighted = SJC(denoiser, weighting=eps_weighting).gradient_at(image, t, eps)
    torch.testing.assert_close(weighted, plain / n)


def test_one_sample_is_sds_and_many_divide_the_variance(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    x = torch.full((4000, 1), 0.6, dtype=torch.float64)
    t = torch.full((4000,), 0.5, dtype=torch.float64)

    def drawn(samples: int) -> Tensor:
        return SJC(denoiser, samples).gradient(x, t, None, torch.Generator().manual_seed(5))

    one = drawn(1)
    assert torch.equal(one, SDS(denoiser).gradient(x, t, None, torch.Generator().manual_seed(5)))
    assert drawn(8).var().item() == pytest.approx(one.var().item() / 8, rel=0.12)
    with pytest.raises(ValueError, match="at least one sample"):
        SJC(denoiser, 0)
