"""The proving ground of exact answers: a Gaussian mixture, its perfect denoiser, small MLPs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import Batch, Ground
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import MLP
from core.schedule import FlowSchedule, NoiseSchedule

__all__ = ["mixture_ground", "ring_mixture", "two_mode_mixture"]


def two_mode_mixture() -> GaussianMixture:
    """Two modes on a line, of weights 0.3 and 0.7; unit variance as a whole, nearly."""
    return GaussianMixture(
        weights=torch.tensor([0.3, 0.7]),
        means=torch.tensor([[-1.2], [0.8]]),
        covariances=torch.tensor([[0.04], [0.09]]),
    )


def ring_mixture(modes: int = 6) -> GaussianMixture:
    """`modes` narrow modes on a circle of radius 1.3 in the plane, of unequal weights."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    return GaussianMixture(
        weights=torch.linspace(1.0, 2.0, modes) / torch.linspace(1.0, 2.0, modes).sum(),
        means=1.3 * torch.stack([angle.cos(), angle.sin()], dim=1),
        covariances=torch.full((modes, 2), 0.02),
    )


def mixture_ground(
    mixture: GaussianMixture,
    schedule: NoiseSchedule | None = None,
    *,
    with_labels: bool = False,
    width: int = 128,
    t_min: float | None = None,
) -> Ground:
    """The ground of a mixture [K, D] on `schedule` (flow by default).

    with_labels    batches carry each draw's label, and networks read it
    t_min          1e-3 by default where the schedule reaches the data, 0 elsewhere
    """
    schedule = schedule or FlowSchedule()
    dimension = mixture.means.shape[1]

    def data(n: int, generator: torch.Generator) -> Batch:
        x0, component = mixture.sample(n, generator)
        cond = Conditioning(labels=mixture.labels[component]) if with_labels else None
        return Batch(x0=x0, cond=cond)

    def make_network(
        *,
        times: int = 1,
        reads_guidance_scale: bool = False,
        in_dimension: int | None = None,
    ) -> nn.Module:
        return MLP(
            in_dimension or dimension,
            out_dimension=dimension,
            times=times,
            n_labels=int(mixture.labels.max()) + 1 if with_labels else 0,
            reads_guidance_scale=reads_guidance_scale,
            width=width,
        )

    if t_min is None:
        t_min = 1e-3 if schedule.reaches_data else 0.0
    return Ground(
        teacher=MixtureDenoiser(mixture, schedule),
        shape=(dimension,),
        data=data,
        make_network=make_network,
        data_std=float(_std(mixture)),
        t_min=t_min,
    )


def _std(mixture: GaussianMixture) -> Tensor:
    """The root mean square deviation of one coordinate from the data's mean."""
    weights = (mixture.weights / mixture.weights.sum())[:, None]
    mean = (weights * mixture.means).sum(0)
    second = (weights * (mixture.variances + (mixture.means - mean).square())).sum(0)
    return second.mean().sqrt()
