"""SFT-PG: the policy gradient against the exact gradient of a linear-Gaussian chain."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.sft_pg import PolicyGradient
from core.distillation.mixture_ground import mixture_ground, two_mode_mixture
from core.distillation.students import NetworkDenoiser
from core.metrics import wasserstein_1d
from core.prediction import Parametrisation
from core.schedule import VPSchedule
from core.training import History, Stage, train


class Scale(nn.Module):
    """x0 = factor x_t: every step of the policy is linear."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        return self.factor * x


class Square(nn.Module):
    """A critic whose mean is the samples' second moment."""

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        s: Tensor | None = None,
        cond: Conditioning | None = None,
    ) -> Tensor:
        return x.square()


def chain(dtype: torch.dtype, batch: int = 8) -> tuple[PolicyGradient, nn.Parameter]:
    ground = mixture_ground(two_mode_mixture(), VPSchedule(beta_max=6.0), t_min=0.05)
    method = PolicyGradient(ground, nfe=2, min_std=0.3, steps=2, batch=batch)
    network = Scale(torch.tensor(0.4, dtype=dtype))
    method.student, method.critic = network, Square()
    method.denoiser = NetworkDenoiser(network, ground.schedule, Parametrisation.X0)
    return method, network.factor


def linear_steps(method: PolicyGradient, factor: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(a, std) of x_s = a x_t + std z for both steps, written out once more."""
    schedule = method.ground.schedule
    steps = []
    grid = method.ground.grid(2).to(factor.dtype)
    for t, s in itertools.pairwise(grid):
        forward = schedule.alpha(t) / schedule.alpha(s)
        transition = schedule.sigma(t) ** 2 - forward**2 * schedule.sigma(s) ** 2
        # DDPM's posterior mean and variance (arXiv 2006.11239, Eq. 7).
        of_x = forward * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
        of_x0 = schedule.alpha(s) * transition / schedule.sigma(t) ** 2
        std = (transition.sqrt() * schedule.sigma(s) / schedule.sigma(t)).clamp(min=method.min_std)
        steps.append((of_x + of_x0 * factor, std))
    return steps


def exact_gradient(method: PolicyGradient, factor: Tensor, prior_variance: float) -> Tensor:
    """d/d factor of E x_0^2, the chain's variance being known in closed form."""
    variance = torch.tensor(prior_variance, dtype=factor.dtype)
    for a, std in linear_steps(method, factor):
        variance = a**2 * variance + std**2
    return torch.autograd.grad(variance, factor)[0]


def test_the_policy_gradient_is_exact_on_a_linear_chain() -> None:
    """E[D sum grad log p] by quadrature over the start and both noises: to 1e-10."""
    method, factor = chain(torch.float64)
    nodes = torch.arange(-8, 8.01, 0.4, dtype=torch.float64)
    density = torch.exp(-nodes.square() / 2)
    density = density / density.sum()
    x, z1, z2 = (v.reshape(-1, 1) for v in torch.meshgrid(nodes, nodes, nodes, indexing="ij"))
    joint = (density[:, None, None] * density[:, None] * density).reshape(-1)
    states = [1.3 * x]
    with torch.no_grad():
        for (a, std), z in zip(linear_steps(method, factor), (z1, z2), strict=True):
            states.append(a * states[-1] + std * z)
    log_probability = method.log_probability(states, None)
    value = states[-1][:, 0].square()
    (found,) = torch.autograd.grad((joint * value * log_probability).sum(), factor)
    expected = exact_gradient(method, factor, 1.69)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Without the sum over steps it is not.
    short = method.log_probability(states[:2], None)
    (wrong,) = torch.autograd.grad((joint * value * short).sum(), factor)
    assert abs(float(wrong - expected)) > 0.1 * abs(float(expected))


def test_the_loss_draws_that_gradient() -> None:
    method, factor = chain(torch.float32, batch=200_000)
    loss = method.loss(torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(loss, factor)
    start = method.noise(200_000, torch.Generator().manual_seed(1))
    expected = exact_gradient(method, factor, float(start.var()))
    assert float(found) == pytest.approx(float(expected), rel=0.04)


def test_the_baseline_leaves_each_sample_out() -> None:
    method, _ = chain(torch.float32)
    value = torch.tensor([1.0, 4.0, -2.0])
    expected = torch.tensor([1.0 - 1.0, 4.0 + 0.5, -2.0 - 2.5])
    torch.testing.assert_close(method.advantage(value), expected)


def test_tuning_brings_few_steps_nearer_to_the_data() -> None:
    ground = mixture_ground(two_mode_mixture(), width=64)
    torch.manual_seed(0)
    method = PolicyGradient(ground, nfe=3, min_std=0.1, imitation_steps=300, steps=460)
    distance: dict[str, float] = {}

    def measure(name: str) -> None:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            x = method.sample(method.noise(5000, generator), 3, None, generator)[-1]
        x0 = ground.data(5000, generator).x0
        distance[name] = float(wasserstein_1d(x[:, 0], x0[:, 0], power=1))

    def progress(stage: Stage, history: History) -> bool:
        if history.step == 300:
            measure("imitation")
        return False

    history = train(method, progress=progress)
    measure("tuned")
    assert [name for name, _ in history.stages] == ["imitate", "fine-tune"]
    # Measured: 0.30 before, 0.16 after. With WGAN-GP's penalty it was 0.4 to 1.0 after.
    assert distance["tuned"] < 0.75 * distance["imitation"]


def test_settings_that_cannot_work_are_refused() -> None:
    ground = mixture_ground(two_mode_mixture())
    with pytest.raises(ValueError, match="min_std > 0"):
        PolicyGradient(ground, min_std=0.0, steps=2)
    with pytest.raises(ValueError, match="steps must exceed imitation_steps"):
        PolicyGradient(ground, imitation_steps=5, steps=5).stages()
