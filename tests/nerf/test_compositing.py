"""Compositing: the compiled packed rays against the dense form, and both against mathematics."""

import pytest
import torch

from nerf.compositing import composite, composite_dense
from nerf.sampling import RaySamples

COUNTS = (5, 0, 1, 0, 0, 17, 3, 0)


def packed(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[RaySamples, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor(COUNTS)
    rays = torch.repeat_interleave(torch.arange(len(COUNTS)), counts)
    lengths = torch.rand(len(rays), generator=g, dtype=dtype) * 0.2
    edges = torch.cumsum(lengths, 0) + 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return RaySamples(rays, edges - lengths, edges, offsets), g


def inputs(
    samples: RaySamples, g: torch.Generator, channels: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = samples.t_starts.dtype
    density = torch.rand(len(samples), generator=g, dtype=dtype) * 20
    values = torch.randn(len(samples), channels, generator=g, dtype=dtype)
    return density.requires_grad_(), values.requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_values_and_gradients_equal_the_dense_form(dtype, tolerance):
    samples, g = packed(dtype)
    density, values = inputs(samples, g)
    fast, plain = composite(density, values, samples), composite_dense(density, values, samples)
    seeds = [torch.randn(out.shape, generator=g, dtype=dtype) for out in plain]
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    ours = torch.autograd.grad(fast, (density, values), seeds)
    theirs = torch.autograd.grad(plain, (density, values), seeds)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, atol=10 * tolerance, rtol=10 * tolerance)


def test_gradients_equal_finite_differences():
    samples, g = packed()
    density, values = inputs(samples, g, channels=2)
    assert torch.autograd.gradcheck(lambda d, v: composite(d, v, samples), (density, values))


@pytest.mark.parametrize("form", [composite, composite_dense])
def test_weights_and_background_add_up_to_one(form):
    samples, g = packed()
    density, values = inputs(samples, g)
    _, transmittance, weights = form(density, values, samples)
    total = transmittance.index_add(0, samples.ray_indices, weights)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-14, rtol=0)
    assert weights.min() >= 0


@pytest.mark.parametrize("form", [composite, composite_dense])
def test_two_samples_by_hand(form):
    samples = RaySamples(
        torch.tensor([0, 0]),
        torch.tensor([1.0, 1.5]).double(),
        torch.tensor([1.5, 2.5]).double(),
        torch.tensor([0, 2]),
    )
    density = torch.tensor([2.0, 3.0]).double()  # tau = 1 and 3
    accumulated, transmittance, weights = form(density, torch.eye(2).double(), samples)
    e = torch.tensor([1.0, 3.0, 4.0]).double().neg().exp()
    expected = torch.stack([1 - e[0], e[0] * (1 - e[1])])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(accumulated[0], expected)
    torch.testing.assert_close(transmittance[0], e[2])


@pytest.mark.parametrize("form", [composite, composite_dense])
def test_extreme_densities_stay_finite(form):
    samples, g = packed(torch.float32)
    _, values = inputs(samples, g)
    density = torch.zeros(len(samples))
    density[::2] = 1e30
    density.requires_grad_()
    outputs = form(density, values, samples)
    gradient = torch.autograd.grad([out.sum() for out in outputs], (density, values))
    assert all(torch.isfinite(x).all() for x in (*outputs, *gradient))


@pytest.mark.parametrize("form", [composite, composite_dense])
def test_no_samples_leave_the_background(form):
    none = torch.zeros(0, dtype=torch.float64)
    samples = RaySamples(none.long(), none, none, torch.zeros(4, dtype=torch.int64))
    density, values = none.clone().requires_grad_(), torch.zeros(0, 3).double().requires_grad_()
    accumulated, transmittance, weights = form(density, values, samples)
    assert torch.equal(accumulated, torch.zeros(3, 3).double())
    assert torch.equal(transmittance, torch.ones(3).double())
    (accumulated.sum() + transmittance.sum() + weights.sum()).backward()
    assert density.grad is not None
