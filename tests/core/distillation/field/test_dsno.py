"""DSNO: the Fourier layer's mathematics, its targets on the exact flow, and training."""

from __future__ import annotations

import pytest
import torch

from core.distillation.field.dsno import DSNO, TemporalFourierLayer
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture
from core.solvers.heun import Heun
from core.training import train


def test_the_fourier_layer_is_a_circular_convolution(generator: torch.Generator) -> None:
    """sum_k kernel(m - k) h(k), the kernel being the weights' inverse transform."""
    torch.manual_seed(0)
    layer = TemporalFourierLayer(3, 8).double()
    h = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    kernel = torch.fft.irfft(torch.complex(*layer.weight), n=8, dim=0)
    expected = torch.stack(
        [torch.einsum("bkc,kcd->bd", h, kernel[(m - torch.arange(8)) % 8]) for m in range(8)],
        dim=1,
    )
    torch.testing.assert_close(layer.convolve(h), expected, rtol=1e-12, atol=1e-12)
    shifted = layer(h.roll(3, dims=1))
    torch.testing.assert_close(shifted, layer(h).roll(3, dims=1), rtol=1e-12, atol=1e-12)


def test_frequencies_beyond_the_modes_are_dropped() -> None:
    layer = TemporalFourierLayer(1, 8, modes=2)
    steps = torch.arange(8) * (2 * torch.pi / 8)
    for frequency, kept in ((0, True), (1, True), (2, False), (4, False)):
        h = torch.cos(frequency * steps)[None, :, None]
        assert bool(layer.convolve(h).detach().abs().max() > 1e-3) == kept
    with pytest.raises(ValueError, match="1 to 5 modes"):
        TemporalFourierLayer(1, 8, modes=6)


def test_the_targets_are_the_exact_flow_at_every_time(mixture_1d: GaussianMixture) -> None:
    """Heun's error to the exact map falls with the square of the step, at each point."""
    ground = mixture_ground(mixture_1d, t_min=0.05)
    flow = ExactFlowMap(mixture_1d, ground.schedule)
    errors = []
    for steps in (16, 32):
        method = DSNO(ground, points=3, steps_per_point=steps, trajectories=64, steps=1)
        method.pool.double()
        method.make_trajectories(torch.Generator().manual_seed(0))
        pool, ones = method.pool, torch.ones(64)
        exact = torch.stack(
            [flow(pool.x_T, ones, float(t) * ones) for t in method.operator.times], dim=1
        )
        errors.append((pool.states - exact).square().mean((0, 2)).sqrt())
    assert bool((errors[0] < 0.02).all())
    assert bool((errors[0] > 3 * errors[1]).all())


def test_one_call_gives_the_trajectory() -> None:
    mixture = two_mode_mixture()
    ground = mixture_ground(mixture)
    torch.manual_seed(0)
    method = DSNO(ground, points=4, steps_per_point=6, trajectories=4096, steps=600)
    train(method)
    generator = torch.Generator().manual_seed(5)
    z = ground.noise(1000, generator)
    with torch.no_grad():
        states = method.sample(z, 1, None, generator)
    assert torch.equal(states[0], z)
    assert len(states) == 5
    flow, ones = ExactFlowMap(mixture, ground.schedule), torch.ones(1000)
    errors = [
        float((x - flow(z, ones, float(t) * ones)).square().mean().sqrt())
        for x, t in zip(states[1:], method.operator.times, strict=True)
    ]
    # The noise itself is 0.22, 0.33, 0.39 and 0.47 away.
    assert all(error < bound for error, bound in zip(errors, (0.08, 0.1, 0.15, 0.3), strict=True))


def test_what_cannot_work_is_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    with pytest.raises(ValueError, match="points and steps_per_point"):
        DSNO(ground, points=0, steps=1)
    method = DSNO(ground, trajectories=4, steps=1)
    with pytest.raises(ValueError, match="ask nfe=1"):
        method.sample(torch.zeros(1, 1), 2, None, torch.Generator())
    with pytest.raises(ValueError, match="cannot be divided among 4 points"):
        method.pool.fill(ground.teacher, Heun(), torch.linspace(1, 0.1, 6), torch.Generator())
