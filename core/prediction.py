"""What a diffusion network says about x_t, in any of its parametrisations.

Each parametrisation is a linear reading p x0 + q eps of the same two unknowns, and the noised
input x_t = alpha x0 + sigma eps is one more equation. A network's output and x_t therefore fix
(x0, eps), and with them every other reading; the one 2x2 system below is all the conversion
there is. Where it is singular (x_t adds nothing to the given value, as x_t = sigma eps adds
nothing to eps where alpha = 0), the reading does not exist, and a ValueError says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from core.schedule import NoiseSchedule, per_sample

__all__ = ["Parametrisation", "Prediction"]


class Parametrisation(Enum):
    """The readings p x0 + q eps that networks are trained to give."""

    X0 = "x0"
    EPS = "eps"
    VELOCITY = "velocity"
    """alpha' x0 + sigma' eps, the derivative of the path; eps - x0 for FlowSchedule."""
    V_PREDICTION = "v_prediction"
    """alpha eps - sigma x0 (arXiv 2202.00512, Section 4)."""

    def weights(self, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q), each of t's shape; not finite where the parametrisation does not exist."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        match self:
            case Parametrisation.X0:
                return one, zero
            case Parametrisation.EPS:
                return zero, one
            case Parametrisation.VELOCITY:
                return schedule.alpha_prime(t), schedule.sigma_prime(t)
            case Parametrisation.V_PREDICTION:
                return -schedule.sigma(t), schedule.alpha(t)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """p x0 + q eps, for x0 and eps [B, ...] and t [B]: what a network is trained on.

        Raises ValueError where the parametrisation does not exist.
        """
        p, q = self.weights(schedule, t)
        _require(torch.isfinite(p) & torch.isfinite(q), t, f"{self.value} does not exist")
        return per_sample(p, x0) * x0 + per_sample(q, x0) * eps


@dataclass(frozen=True, eq=False)
class Prediction:
    """A denoiser's answer for x_t [B, ...] at t [B]: `value` [B, ...], given as `given`.

    Read it as `x0`, `eps`, `velocity`, `v_prediction` or `score`, each [B, ...], differentiable
    and in x_t's dtype. Reading what was given returns it untouched; a reading that does not exist
    at one of the times raises ValueError.
    """

    value: Tensor
    given: Parametrisation
    x_t: Tensor
    t: Tensor
    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        if self.value.shape != self.x_t.shape:
            raise ValueError(
                f"A prediction must have x_t's shape {list(self.x_t.shape)}, "
                f"got {list(self.value.shape)}."
            )
        if self.t.shape != self.x_t.shape[:1]:
            raise ValueError(
                f"t must have shape [{self.x_t.shape[0]}], one value per sample, "
                f"got {list(self.t.shape)}."
            )

    @classmethod
    def from_x0(cls, x0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Prediction:
        return cls(x0, Parametrisation.X0, x_t, t, schedule)

    @classmethod
    def from_eps(cls, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Prediction:
        return cls(eps, Parametrisation.EPS, x_t, t, schedule)

    @classmethod
    def from_velocity(
        cls, velocity: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Prediction:
        """From alpha' x0 + sigma' eps (eps - x0 on FlowSchedule)."""
        return cls(velocity, Parametrisation.VELOCITY, x_t, t, schedule)

    @classmethod
    def from_v_prediction(
        cls, v_prediction: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Prediction:
        """From alpha eps - sigma x0, what "v-prediction" networks give."""
        return cls(v_prediction, Parametrisation.V_PREDICTION, x_t, t, schedule)

    @classmethod
    def from_score(
        cls, score: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Prediction:
        """From grad log p_t(x_t) = -eps / sigma, kept as eps."""
        eps = -per_sample(schedule.sigma(t), score) * score
        return cls(eps, Parametrisation.EPS, x_t, t, schedule)

    @property
    def x0(self) -> Tensor:
        return self.read(Parametrisation.X0)

    @property
    def eps(self) -> Tensor:
        return self.read(Parametrisation.EPS)

    @property
    def velocity(self) -> Tensor:
        return self.read(Parametrisation.VELOCITY)

    @property
    def v_prediction(self) -> Tensor:
        return self.read(Parametrisation.V_PREDICTION)

    @property
    def score(self) -> Tensor:
        sigma = self.schedule.sigma(self.t)
        _require(sigma != 0, self.t, "score does not exist")
        return self.eps * per_sample(-1 / sigma, self.x_t)

    def read(self, wanted: Parametrisation) -> Tensor:
        """The prediction as `wanted`.

        With the given value y = p x0 + q eps and x_t = alpha x0 + sigma eps, Cramer's rule gives
        x0 = (q x_t - sigma y) / det and eps = (alpha y - p x_t) / det, det = alpha q - sigma p;
        the wanted reading is r x0 + s eps.
        """
        if wanted is self.given:
            return self.value
        alpha, sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        p, q = self.given.weights(self.schedule, self.t)
        r, s = wanted.weights(self.schedule, self.t)
        det = alpha * q - sigma * p
        of_x_t = (r * q - s * p) / det
        of_value = (s * alpha - r * sigma) / det
        if not self._is_always_read(wanted):
            _require(
                (det != 0) & torch.isfinite(of_x_t) & torch.isfinite(of_value),
                self.t,
                f"{wanted.value} cannot be read from a prediction given as {self.given.value}",
            )
        return per_sample(of_x_t, self.x_t) * self.x_t + per_sample(of_value, self.x_t) * self.value

    def _is_always_read(self, wanted: Parametrisation) -> bool:
        """Whether `wanted` exists at all times in [0, 1], so that the times need not be looked at.

        To look means to wait for a device, which had better work on meanwhile; on the CPU it costs
        nothing and finds times outside too. Where neither end is reached, alpha and sigma are
        positive, and det is alpha, -sigma or alpha^2 + sigma^2.
        """
        reaches_an_end = self.schedule.reaches_data or self.schedule.reaches_noise
        moving = Parametrisation.VELOCITY in (self.given, wanted)
        return self.t.device.type != "cpu" and not reaches_an_end and not moving

    def with_value(self, value: Tensor) -> Prediction:
        """The same x_t, t and parametrisation with another value."""
        return replace(self, value=value)

    def split(self, sizes: Sequence[int]) -> list[Prediction]:
        """Consecutive pieces of the batch, of the given sizes."""
        pieces = zip(
            self.value.split(list(sizes)),
            self.x_t.split(list(sizes)),
            self.t.split(list(sizes)),
            strict=True,
        )
        return [Prediction(value, self.given, x_t, t, self.schedule) for value, x_t, t in pieces]


def _require(exists: Tensor, t: Tensor, what: str) -> None:
    if not bool(exists.all()):
        times = sorted(set(t[~exists].tolist()))
        shown = ", ".join(f"{time:g}" for time in times[:4]) + (", ..." if len(times) > 4 else "")
        raise ValueError(
            f"{what} at t = {shown}, where the schedule's alpha or sigma is 0. Stay inside that "
            "end of the schedule, or use a parametrisation that exists there."
        )
