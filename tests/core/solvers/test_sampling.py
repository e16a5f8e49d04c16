"""The sampling loop: what it hands to a solver, what it counts, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning, Denoiser
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule
from core.solvers.ddim import DDIM
from core.solvers.heun import Heun
from core.solvers.sampling import log_snr_times, sample


class Remembering:
    """A solver whose state is the list of steps it was asked for."""

    order = 1

    def start(self) -> list[tuple[list[float], list[float]]]:
        return []

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: list[tuple[list[float], list[float]]],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[tuple[list[float], list[float]]]]:
        now = [*state, (t.tolist(), s.tolist())]
        return torch.full_like(x, len(now)), now


def test_state_and_times_go_from_step_to_step(mixture_1d: GaussianMixture) -> None:
    times = torch.tensor([1.0, 0.5, 0.25, 0.0])
    x = torch.zeros(2, 1)
    path = sample(MixtureDenoiser(mixture_1d, FlowSchedule()), Remembering(), times, x)
    # Each state holds the length of the list that had been handed on.
    assert [state[0, 0].item() for state in path.states] == [0, 1, 2, 3]
    assert torch.equal(path.states[0], x)
    assert torch.equal(path.x, path.states[-1])
    assert torch.equal(path.times, times)
    assert path.nfe == 0


def test_calls_are_counted(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert sample(denoiser, DDIM(), times, x).nfe == 8
    assert sample(denoiser, Heun(), times, x).nfe == 16
    guided = ClassifierFreeGuidance(denoiser, 2.0)
    labels = torch.tensor([0, 1])
    cond = Conditioning(labels=labels, uncond=Conditioning(labels=-torch.ones_like(labels)))
    assert sample(guided, DDIM(), times, x, cond).nfe == 8


def test_the_conditioning_reaches_the_denoiser(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    times = torch.linspace(1, 0, 33, dtype=torch.float64)
    x = torch.zeros(2, 1, dtype=torch.float64)
    ends = sample(denoiser, DDIM(), times, x, Conditioning(labels=torch.tensor([0, 1]))).x
    # From the median of the noise to the median of each class.
    assert ends[0, 0].item() == pytest.approx(-1.0, abs=0.02)
    assert 0.3 < ends[1, 0].item() < 1.0


def test_gradients_flow_through_the_sampler(mixture_1d: GaussianMixture) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sample(denoiser, Heun(), times, x).x, (x,))


@pytest.mark.parametrize("times", [[0.5], [0.9, 0.5, 0.5], [0.9, 0.5, 0.7]])
def test_bad_times_are_refused(mixture_1d: GaussianMixture, times: list[float]) -> None:
    denoiser = MixtureDenoiser(mixture_1d, FlowSchedule())
    with pytest.raises(ValueError, match="times must"):
        sample(denoiser, DDIM(), torch.tensor(times), torch.zeros(1, 1))


def test_log_snr_times_are_equally_spaced(schedule: NoiseSchedule) -> None:
    times = log_snr_times(schedule, 0.95, 0.05, 10)
    assert times.shape == (11,)
    assert times[0].item() == 0.95
    assert times[-1].item() == 0.05
    gaps = schedule.log_snr(times).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(10), rtol=1e-9, atol=1e-9)


def test_log_snr_times_refuse_an_infinite_end() -> None:
    with pytest.raises(ValueError, match="infinite"):
        log_snr_times(CosineSchedule(), 1.0, 0.1, 10)
