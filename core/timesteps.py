"""Which diffusion times score distillation visits: policies from progress in [0, 1] to t [B].

A policy is a value without memory, so a resumed run visits the times of an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Pace", "TimestepPolicy", "TimestepWindow", "WeightedNonIncreasing"]


class TimestepPolicy(Protocol):
    """How times are chosen as an optimisation goes on."""

    def sample(self, progress: float, count: int, generator: torch.Generator) -> Tensor:
        """Times [count] in [0, 1]; progress is 0 at the first step and 1 after the last."""
        ...


class Pace(Enum):
    """How far a window has moved from its first place to its last at a given progress."""

    CONSTANT = "constant"
    LINEAR = "linear"
    SQRT = "sqrt"
    """sqrt(progress): fast at first (HiFA, arXiv 2305.18766)."""
    JUMP = "jump"
    """Not at all, then at once (ProlificDreamer, arXiv 2305.16213)."""

    def moved(self, progress: float) -> float:
        match self:
            case Pace.CONSTANT:
                return 0.0
            case Pace.LINEAR:
                return progress
            case Pace.SQRT:
                return math.sqrt(progress)
            case Pace.JUMP:
                return float(progress >= 1)


@dataclass(frozen=True, kw_only=True)
class TimestepWindow:
    """t uniform between two bounds, each of which moves from its first value to its second.

    DreamFusion's constant window is Pace.CONSTANT; a window of no width that moves by Pace.SQRT
    is HiFA's t = t_max - (t_max - t_min) sqrt(progress). The window is at its last place from the
    progress `end` on.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    pace: Pace = Pace.LINEAR
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.end <= 1:
            raise ValueError(f"A window's end must lie in (0, 1], got {self.end}.")
        for low, high in zip(self.low, self.high, strict=True):
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"A window of times needs 0 <= low <= high <= 1, got {self.low} and "
                    f"{self.high}."
                )

    def bounds(self, progress: float) -> tuple[float, float]:
        """The window at this progress."""
        moved = self.pace.moved(min(progress / self.end, 1.0))
        low = self.low[0] + (self.low[1] - self.low[0]) * moved
        high = self.high[0] + (self.high[1] - self.high[0]) * moved
        return low, high

    def sample(self, progress: float, count: int, generator: torch.Generator) -> Tensor:
        low, high = self.bounds(progress)
        return low + (high - low) * torch.rand(count, generator=generator)


@dataclass(frozen=True, kw_only=True)
class WeightedNonIncreasing:
    """DreamTime's non-increasing times (arXiv 2306.12422), without randomness.

    t(progress) solves: the integral of W from t to t_max = progress times W's whole integral from
    t_min to t_max. So much time is spent where W is large:

        W(t) = exp(-(t - m1)^2 / 2 s1^2) above m1, 1 from m2 to m1, exp(-(t - m2)^2 / 2 s2^2) below.

    The defaults are the paper's 800, 500, 300, 100 of 1000. All samples of a step share t.
    """

    t_min: float = 0.02
    t_max: float = 0.98
    m1: float = 0.8
    m2: float = 0.5
    s1: float = 0.3
    s2: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"Times need 0 <= t_min < t_max <= 1, got {self.t_min} and {self.t_max}."
            )
        if self.m2 > self.m1 or min(self.s1, self.s2) <= 0:
            raise ValueError(
                f"W needs m2 <= m1 and positive widths, got m1={self.m1}, m2={self.m2}, "
                f"s1={self.s1}, s2={self.s2}."
            )

    def weight(self, t: float) -> float:
        """W(t)."""
        if t > self.m1:
            return math.exp(-((t - self.m1) ** 2) / (2 * self.s1**2))
        if t < self.m2:
            return math.exp(-((t - self.m2) ** 2) / (2 * self.s2**2))
        return 1.0

    def time_at(self, progress: float) -> float:
        """t at this progress: t_max at 0, t_min at 1."""
        top, bottom = self._integral(self.t_max), self._integral(self.t_min)
        return min(max(self._inverse(top - progress * (top - bottom)), self.t_min), self.t_max)

    def sample(self, progress: float, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), self.time_at(progress))

    def _integral(self, t: float) -> float:
        """The integral of W from m2 to t, negative below."""
        if t < self.m2:
            return _half_bell(t - self.m2, self.s2)
        if t <= self.m1:
            return t - self.m2
        return self.m1 - self.m2 + _half_bell(t - self.m1, self.s1)

    def _inverse(self, area: float) -> float:
        if area < 0:
            return self.m2 + _inverse_half_bell(area, self.s2)
        flat = self.m1 - self.m2
        if area <= flat:
            return self.m2 + area
        return self.m1 + _inverse_half_bell(area - flat, self.s1)


def _half_bell(x: float, width: float) -> float:
    """The integral of exp(-u^2 / 2 width^2) from 0 to x."""
    return width * math.sqrt(math.pi / 2) * math.erf(x / (width * math.sqrt(2)))


def _inverse_half_bell(area: float, width: float) -> float:
    share = area / (width * math.sqrt(2 * math.pi)) + 0.5
    # Rounding may reach the ends, which lie at infinity.
    return NormalDist(0.0, width).inv_cdf(min(max(share, 1e-300), 1 - 1e-16))
