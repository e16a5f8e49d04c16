"""Scores from data: denoising score matching, Hyvarinen's score matching, Langevin dynamics.

A denoiser trained here is a Denoiser like any other, so the reverse SDE and the probability-flow
ODE are sampled by core.solvers: EulerMaruyama and DDPM for the one, DDIM, Heun and the higher
orders for the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.method import Batch
from core.distillation.students import NetworkDenoiser
from core.prediction import Parametrisation
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample
from core.training import Player, Stage

__all__ = [
    "DenoiserTraining",
    "ScaledInput",
    "annealed_langevin",
    "denoising_loss",
    "divergence",
    "fisher_divergence",
    "hyvarinen_score",
    "langevin",
]

Score = Callable[[Tensor], Tensor]


def denoising_loss(
    denoiser: NetworkDenoiser,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: Conditioning | None = None,
) -> Tensor:
    """|F(x_t, t) - (p x0 + q eps)|^2 of each sample [B], in the denoiser's own parametrisation.

    Its minimiser is the conditional mean of p x0 + q eps given x_t, whence the exact score:
    the squared distance to it is the loss less a constant (Vincent, Neural Computation 23, 2011).
    """
    x_t = diffuse(denoiser.schedule, x0, eps, t)
    target = denoiser.parametrisation.target(x0, eps, t, denoiser.schedule)
    return (denoiser(x_t, t, cond).value - target).square().flatten(1).mean(1)


class ScaledInput(nn.Module):
    """A network that is shown x_t at unit variance: x_t / sqrt(alpha^2 d^2 + sigma^2).

    c_in of EDM (arXiv 2206.00364, Table 1), on any schedule; without it a network on VESchedule
    is asked about numbers between d and sigma_max. d is `data_std`.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, data_std: float) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.data_std = data_std

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        signal = self.schedule.alpha(t) * self.data_std
        spread = torch.sqrt(signal.square() + self.schedule.sigma(t).square())
        return self.network(x / per_sample(spread, x), t, s, cond)


class DenoiserTraining:
    """Denoising score matching of a network on data, as a core.training.Method.

    Args:
        network: A core.networks.Network; trained in place.
        schedule, parametrisation: What its output means.
        data: (n, generator) to a Batch of n.
        steps, batch, learning_rate: Of the optimiser.
        t_min, t_max: Times are uniform between them; the parametrisation must exist there.
        average_decay: Of the exponential moving average that `denoiser` reads.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        parametrisation: Parametrisation,
        data: Callable[[int, torch.Generator], Batch],
        *,
        steps: int,
        batch: int = 256,
        learning_rate: float = 2e-3,
        t_min: float = 1e-3,
        t_max: float = 1.0,
        average_decay: float = 0.99,
    ) -> None:
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"Times need 0 <= t_min < t_max <= 1, got {t_min} and {t_max}.")
        self.network = network
        self.average = copy.deepcopy(network)
        self.data = data
        self.steps, self.batch = steps, batch
        self.learning_rate, self.average_decay = learning_rate, average_decay
        self.t_min, self.t_max = t_min, t_max
        self._trained = NetworkDenoiser(network, schedule, parametrisation)
        self.denoiser = NetworkDenoiser(self.average, schedule, parametrisation)

    def loss(self, generator: torch.Generator) -> Tensor:
        """The mean of `denoising_loss` over a batch."""
        data = self.data(self.batch, generator)
        t = torch.rand(self.batch, generator=generator) * (self.t_max - self.t_min) + self.t_min
        eps = noise_like(data.x0, generator)
        return denoising_loss(self._trained, data.x0, eps, t, data.cond).mean()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def stages(self) -> Sequence[Stage]:
        player = Player(
            module=self.network,
            loss=self.loss,
            learning_rate=self.learning_rate,
            average=self.average,
            average_decay=self.average_decay,
        )
        return [Stage(name="denoise", steps=self.steps, players={"network": player})]


def divergence(score: Score, x: Tensor, probe: Tensor | None = None) -> Tensor:
    """sum_i d s_i / d x_i [B] of a field that acts on each sample of x [B, D] by itself.

    Exact in D backward passes; with `probe` [B, D] of zero mean and unit covariance, in one, the
    unbiased estimate probe . J probe (sliced score matching, arXiv 1905.07088, Section 3).
    Differentiable in the field's parameters.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        values = score(x)
        if probe is not None:
            product = torch.autograd.grad((values * probe).sum(), x, create_graph=True)[0]
            return (product * probe).sum(1)
        columns = [
            torch.autograd.grad(values[:, i].sum(), x, create_graph=True)[0][:, i]
            for i in range(x.shape[1])
        ]
        return torch.stack(columns).sum(0)


def hyvarinen_score(score: Score, x: Tensor, probe: Tensor | None = None) -> Tensor:
    """|s(x)|^2 / 2 + div s(x) [B]: score matching's loss (Hyvarinen, JMLR 6, 2005, Eq. 4).

    Its mean over data of density p is half the Fisher divergence of p and s, less the mean of
    |grad log p|^2 / 2, which no model changes; so it needs no score of p. `probe` as in
    `divergence`.
    """
    return score(x).square().sum(1) / 2 + divergence(score, x, probe)


def fisher_divergence(score_p: Score, score_q: Score, x: Tensor) -> Tensor:
    """|s_p(x) - s_q(x)|^2 [B]; its mean over x drawn from p is the Fisher divergence of p and q."""
    return (score_p(x) - score_q(x)).square().sum(1)


def langevin(
    score: Score, x: Tensor, *, step_size: float, steps: int, generator: torch.Generator
) -> Tensor:
    """x [B, ...] after `steps` of x + h/2 s(x) + sqrt(h) z (arXiv 1907.05600, Eq. 4).

    Unadjusted: it keeps exp(log p) but for an error of the first order in h. On a Gaussian of
    variance v its own stationary variance is v / (1 - h / (4 v)).
    """
    if step_size <= 0:
        raise ValueError(f"step_size must be positive, got {step_size}.")
    for _ in range(steps):
        x = x + step_size / 2 * score(x) + step_size**0.5 * noise_like(x, generator)
    return x


@torch.no_grad()
def annealed_langevin(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float],
    *,
    steps: int,
    relative_step: float,
    generator: torch.Generator,
    cond: Conditioning | None = None,
) -> Tensor:
    """Langevin dynamics at each of the falling `times`, from x [B, ...] at the first.

    The step is relative_step times sigma(t)^2 (arXiv 1907.05600, Algorithm 1). Where alpha
    changes too, x is carried to the next time's signal by alpha's ratio, so alpha must not be 0.
    """
    for i, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device, dtype=x.dtype)
        if i > 0:
            before = torch.full_like(t, times[i - 1])
            x = per_sample(denoiser.schedule.alpha(t) / denoiser.schedule.alpha(before), x) * x

        def score(x: Tensor, t: Tensor = t) -> Tensor:
            return denoiser(x, t, cond).score

        step_size = relative_step * float(denoiser.schedule.sigma(t[:1]).square())
        x = langevin(score, x, step_size=step_size, steps=steps, generator=generator)
    return x
