"""Gotta Go Fast: the reverse SDE with steps that an error estimate chooses (arXiv 2105.14080)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import noise_like, per_sample
from core.solvers.euler_maruyama import sde_coefficients

__all__ = ["AdaptiveSDEConfig", "AdaptiveSample", "sample_adaptive"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDEConfig:
    """How large an error is let pass, and how steps follow from it.

    A step's error is the root mean square over a sample of the pair's difference, each element
    over max(absolute_tolerance, relative_tolerance |x|); at most 1 is accepted. The next step is
    safety error^-exponent times the last.

    absolute_tolerance  in data units; the default is one of 256 levels in [-1, 1]
    first_step          in t
    max_tries           accepted or not; more raise RuntimeError
    """

    absolute_tolerance: float = 2 / 256
    relative_tolerance: float = 0.01
    first_step: float = 0.01
    safety: float = 0.9
    exponent: float = 0.9
    max_tries: int = 100_000

    def __post_init__(self) -> None:
        for name in ("absolute_tolerance", "first_step"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be positive, got {getattr(self, name)}: with 0 no step could be "
                    "accepted."
                )
        if not self.relative_tolerance >= 0:
            raise ValueError(
                f"relative_tolerance must be at least 0, got {self.relative_tolerance}."
            )
        if not 0 < self.safety < 1:
            raise ValueError(f"safety must lie in (0, 1), got {self.safety}.")
        if not 0.5 <= self.exponent <= 1:
            raise ValueError(f"exponent must lie in [0.5, 1], got {self.exponent}.")
        if not self.max_tries >= 1:
            raise ValueError(f"max_tries must be at least 1, got {self.max_tries}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveSample:
    """What `sample_adaptive` reached, and how."""

    x: Tensor
    """[B, ...], at the end."""
    nfe: int
    """Calls of the denoiser, each of the whole batch: two for every try of the slowest sample."""
    accepted: Tensor
    """[B] long, the steps each sample made."""
    rejected: Tensor
    """[B] long, the steps each sample tried and made shorter."""


@torch.no_grad()
def sample_adaptive(
    denoiser: Denoiser,
    x: Tensor,
    *,
    start: float,
    end: float,
    generator: torch.Generator,
    config: AdaptiveSDEConfig | None = None,
    cond: Conditioning | None = None,
) -> AdaptiveSample:
    """x [B, ...] at time `start` along the reverse SDE to `end`, each sample in its own steps.

    With the reverse SDE's drift a = f x - g^2 score, a step h and its noise dw, the pair is
    Euler-Maruyama and the stochastic improved Euler method, of which the second is kept:

        x'  = x - h a(x, t) + g(t) dw
        x'' = (x' + x - h a(x', t - h) + g(t - h) dw) / 2.

    The authors' code draws new noise when a step is rejected. What is accepted then is no
    Brownian motion, as small noise passes more often, and a bias stays at any tolerance. Here the
    noise once drawn stays (a Brownian bridge gives its part for the shorter step), so the sampler
    converges as the tolerances fall.

    Raises ValueError where the SDE's coefficients are infinite (where alpha or sigma is 0), and
    RuntimeError if the error is not finite or the tries run out. No gradient.
    """
    if not 0 <= end < start <= 1:
        raise ValueError(f"sample_adaptive needs 0 <= end < start <= 1, got {start} to {end}.")
    config = config or AdaptiveSDEConfig()
    schedule = denoiser.schedule

    def drift_and_diffusion(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        f, g_squared = sde_coefficients(schedule, t)
        score = denoiser(x_t, t, cond).score
        drift = per_sample(f, x_t) * x_t - per_sample(g_squared, x_t) * score
        return drift, per_sample(g_squared.sqrt(), x_t)

    t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    last = torch.full_like(t, end)
    step = torch.full_like(t, config.first_step)
    path = _BrownianPath(x, generator)
    accepted, rejected = (torch.zeros_like(t, dtype=torch.long) for _ in range(2))
    before, tries = x, 0
    while bool((t > last).any()):
        if tries == config.max_tries:
            raise RuntimeError(
                f"The adaptive solver came to t = {t.max().item():g} in {tries} tries. Raise "
                "absolute_tolerance, relative_tolerance or max_tries."
            )
        tries += 1
        s, noise = path.draw(t, torch.maximum(t - step, last))
        h = t - s
        drift, diffusion = drift_and_diffusion(x, t)
        euler = x - per_sample(h, x) * drift + diffusion * noise
        drift, diffusion = drift_and_diffusion(euler, s)
        improved = (euler + x - per_sample(h, x) * drift + diffusion * noise) / 2

        largest = torch.maximum(euler.abs(), before.abs())
        allowed = (config.relative_tolerance * largest).clamp(min=config.absolute_tolerance)
        error = ((improved - euler) / allowed).flatten(1).square().mean(1).sqrt().to(t.dtype)
        if not bool(torch.isfinite(error).all()):
            raise RuntimeError("The adaptive solver's error is not finite: the denoiser diverged.")
        accept, running = error <= 1, t > last
        accepted += accept & running
        rejected += ~accept
        keep = per_sample(accept, x).bool()
        x, before = torch.where(keep, improved, x), torch.where(keep, euler, before)
        t = torch.where(accept, s, t)
        path.leave(accept)
        # No step grows without bound where the pair agrees exactly.
        step = config.safety * h * error.clamp(min=1e-6) ** -config.exponent
    return AdaptiveSample(x=x, nfe=2 * tries, accepted=accepted, rejected=rejected)


class _BrownianPath:
    """A Brownian motion in falling time, drawn as it is asked for, remembered until it is left.

    For each sample a stack of increments that follow each other from its time t on, the next one
    on top. A shorter step splits the top one.
    """

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        self._generator = generator
        self._depth = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._until = torch.zeros((1, len(x)), dtype=torch.float64, device=x.device)
        self._change = torch.zeros_like(x)[None]

    def draw(self, t: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The increment from t [B] to `wanted` [B] or, if that is nearer, to where the top ends.

        Returns where it leads [B], and the increment [B, ...].
        """
        samples = torch.arange(len(t), device=t.device)
        top = (self._depth - 1).clamp(min=0)
        known = self._depth > 0
        ends, change = self._until[top, samples], self._change[top, samples]
        s = torch.where(known, torch.maximum(wanted, ends), wanted)
        # Given its increment over the whole, a motion's part of it is normal around its share.
        share = torch.where(known, (t - s) / (t - ends), 0.0)
        std = ((t - s) * (1 - share)).clamp(min=0).sqrt()
        noise = noise_like(change, self._generator)
        drawn = per_sample(share, change) * change + per_sample(std, change) * noise
        split = ~known | (s > ends)
        if int((self._depth + split).max()) > len(self._until):
            self._until = torch.cat([self._until, torch.zeros_like(self._until[:1])])
            self._change = torch.cat([self._change, torch.zeros_like(self._change[:1])])
        rest = known & split
        self._change[top[rest], samples[rest]] -= drawn[rest]
        self._until[self._depth[split], samples[split]] = s[split]
        self._change[self._depth[split], samples[split]] = drawn[split]
        self._depth = self._depth + split
        return s, drawn

    def leave(self, walked: Tensor) -> None:
        """Forget the top increment of the samples that walked it [B] bool."""
        self._depth = self._depth - walked.long()
