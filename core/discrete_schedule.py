"""The noise schedule of a network that was trained on N discrete timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["DiscreteVPSchedule"]


@dataclass(frozen=True, eq=False)
class DiscreteVPSchedule:
    """A variance-preserving schedule of N discrete steps, made continuous in t.

    `alphas_cumprod` [N] is alpha^2 at timesteps 0 .. N-1, falling, in (0, 1); its last value may
    be 0 (zero terminal SNR, arXiv 2305.08891). Timestep n stands at t = n / (N - 1), and between
    timesteps the log-SNR is linear in t, so alpha' and sigma' jump at each of them (the right-hand
    value is given). Where the last log-SNR is minus infinity, it is alpha/sigma that is linear in
    the last interval.

    The data end is not included: timestep 0 already carries noise.
    """

    alphas_cumprod: Tensor
    _knots: Tensor = field(init=False, repr=False)
    _on_device: dict[torch.device, Tensor] = field(init=False, repr=False, default_factory=dict)

    reaches_data = False

    def __post_init__(self) -> None:
        squares = self.alphas_cumprod.detach().to("cpu", torch.float64)
        if squares.ndim != 1 or len(squares) < 3:
            raise ValueError(
                "DiscreteVPSchedule needs alphas_cumprod of shape [N] with N >= 3, "
                f"got shape {list(squares.shape)}."
            )
        inside = bool((squares[0] < 1) & (squares[-2] > 0) & (squares[-1] >= 0))
        if not inside or not bool((squares.diff() < 0).all()):
            raise ValueError(
                "DiscreteVPSchedule needs alphas_cumprod to fall strictly inside (0, 1); only its "
                "last value may be 0."
            )
        object.__setattr__(self, "_knots", torch.log(squares) - torch.log1p(-squares))

    @property
    def reaches_noise(self) -> bool:
        return bool(torch.isneginf(self._knots[-1]))

    @property
    def num_train_timesteps(self) -> int:
        return len(self._knots)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's timestep for t, in [0, N - 1]; not rounded."""
        return t * (self.num_train_timesteps - 1)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    # With r = alpha/sigma: alpha = r / sqrt(1 + r^2), sigma = 1 / sqrt(1 + r^2), so that
    # alpha' = r' sigma^3 and sigma' = -r' alpha sigma^2; r' is finite even where log r is not.
    def alpha_prime(self, t: Tensor) -> Tensor:
        return self._ratio_prime(t) * self.sigma(t) ** 3

    def sigma_prime(self, t: Tensor) -> Tensor:
        return -self._ratio_prime(t) * self.alpha(t) * self.sigma(t) ** 2

    def log_snr(self, t: Tensor) -> Tensor:
        left, fall, to_zero, fraction = self._interval(t)
        # Each branch is kept finite where the other is taken: autograd multiplies both.
        linear = left + fraction * fall
        bent = left + 2 * torch.log1p(-fraction.where(to_zero, 0.0))
        return torch.where(to_zero, bent, linear).to(t.dtype)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        knots = self._knots_on(log_snr.device)
        wanted = log_snr.double()
        # searchsorted wants rising values: the log-SNR falls, its negative rises.
        index = torch.searchsorted(-knots, (-wanted).contiguous(), right=True) - 1
        index = index.clamp(0, len(knots) - 2)
        left, right = knots[index], knots[index + 1]
        linear = (wanted - left) / (right - left)
        to_zero = -torch.expm1((wanted - left) / 2)
        fraction = torch.where(torch.isneginf(right), to_zero, linear)
        return ((index + fraction) / (len(knots) - 1)).to(log_snr.dtype)

    def _ratio_prime(self, t: Tensor) -> Tensor:
        left, fall, to_zero, fraction = self._interval(t)
        linear = torch.exp((left + fraction * fall) / 2) * fall / 2
        slope = torch.where(to_zero, -torch.exp(left / 2), linear)
        return (slope * (self.num_train_timesteps - 1)).to(t.dtype)

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the interval that holds t, in float64: the log-SNR at its left end and its fall to
        the right one (0 where that is infinite), whether it is infinite, and how far in t lies.
        """
        knots = self._knots_on(t.device)
        position = t.double() * (len(knots) - 1)
        index = position.detach().floor().long().clamp(0, len(knots) - 2)
        left, right = knots[index], knots[index + 1]
        to_zero = torch.isneginf(right)
        return left, (right - left).masked_fill(to_zero, 0.0), to_zero, position - index

    def _knots_on(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self._knots.to(device)
        return self._on_device[device]
