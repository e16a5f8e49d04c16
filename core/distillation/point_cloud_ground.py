"""A ground whose samples are point clouds, and a network that treats them as sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import Batch, Ground
from core.mixture import GaussianMixture, MixtureDenoiser
from core.networks import MLP
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, per_sample

__all__ = ["PointCloudDenoiser", "PointNetwork", "point_cloud_ground"]


class PointNetwork(nn.Module):
    """x [B, N, D] to [B, N, D], equivariant to the points' order, for any N.

    Each point is read by an MLP together with the largest and the mean, over the points, of the
    features of another (PointNet, arXiv 1612.00593, has the largest alone).
    """

    def __init__(self, dimension: int, *, times: int = 1, width: int = 128) -> None:
        super().__init__()
        self.features = MLP(dimension, out_dimension=width // 2, times=times, width=width, depth=2)
        self.points = MLP(
            dimension + width, out_dimension=dimension, times=times, width=width, depth=3
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        s: Tensor | None = None,
        cond: Conditioning | None = None,
    ) -> Tensor:
        batch, points, dimension = x.shape
        flat = x.reshape(-1, dimension)
        t, s = (None if v is None else v.repeat_interleave(points) for v in (t, s))
        features = self.features(flat, t, s).reshape(batch, points, -1)
        whole = torch.cat([features.amax(1), features.mean(1)], dim=1)
        seen = torch.cat([flat, whole.repeat_interleave(points, dim=0)], dim=1)
        return self.points(seen, t, s).reshape(x.shape)


class PointCloudDenoiser:
    """The perfect denoiser of clouds given in a fixed order, each with isotropic jitter.

    x_t [B, N, D] is read as one point in N D dimensions, where the data is a mixture of M narrow
    Gaussians around `clouds` [M, N, D].
    """

    def __init__(self, clouds: Tensor, jitter_std: float, schedule: NoiseSchedule) -> None:
        flat = clouds.flatten(1)
        mixture = GaussianMixture(
            weights=torch.ones(len(flat), dtype=flat.dtype, device=flat.device),
            means=flat,
            covariances=torch.full_like(flat, jitter_std**2),
        )
        self._flat = MixtureDenoiser(mixture, schedule)

    @property
    def schedule(self) -> NoiseSchedule:
        return self._flat.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        value = self._flat(x_t.flatten(1), t).v_prediction.reshape(x_t.shape)
        return Prediction.from_v_prediction(value, x_t, t, self.schedule)


def point_cloud_ground(
    clouds: Tensor,
    schedule: NoiseSchedule | None = None,
    *,
    jitter_std: float = 0.02,
    width: int = 128,
    t_min: float | None = None,
) -> Ground:
    """The ground of M clouds [M, N, D] of N points each, on `schedule` (flow by default).

    Each draw is one of the clouds with every point moved by jitter_std of noise. Its networks
    see sets, its teacher the clouds' own order. t_min as in mixture_ground.
    """
    if clouds.ndim != 3:
        raise ValueError(f"clouds must have shape [M, N, D], got {list(clouds.shape)}.")
    schedule = schedule or FlowSchedule()
    _, points, dimension = clouds.shape

    def data(n: int, generator: torch.Generator) -> Batch:
        index = torch.randint(len(clouds), (n,), generator=generator)
        noise = torch.randn(n, points, dimension, generator=generator, dtype=clouds.dtype)
        std = torch.full((n,), jitter_std)
        return Batch(x0=clouds[index.to(clouds.device)] + per_sample(std, noise) * noise)

    def make_network(
        *, times: int = 1, reads_guidance_scale: bool = False, in_dimension: int | None = None
    ) -> nn.Module:
        if reads_guidance_scale or in_dimension is not None:
            raise ValueError(
                "Networks on point clouds read neither a guidance scale nor a flat z. Choose a "
                "method that needs neither, such as psf."
            )
        return PointNetwork(dimension, times=times, width=width)

    if t_min is None:
        t_min = 1e-3 if schedule.reaches_data else 0.0
    return Ground(
        teacher=PointCloudDenoiser(clouds, jitter_std, schedule),
        shape=(points, dimension),
        data=data,
        make_network=make_network,
        data_std=float((clouds - clouds.mean((0, 1))).square().mean().sqrt()),
        t_min=t_min,
    )
