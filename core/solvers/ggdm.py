"""Samplers whose coefficients are learned through the sampler: GGDM by DDSS (arXiv 2202.05830)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import NoiseSchedule, diffuse, noise_like
from core.solvers.ddim import ddim_coefficients
from core.solvers.sampling import sample

__all__ = ["GGDM", "SearchConfig", "kernel_distance", "search_sampler"]


def kernel_distance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> Tensor:
    """The squared maximum mean discrepancy of features x [M, D] and y [N, D].

    Its kernel is that of the kernel inception distance (arXiv 1801.01401), (x . y / D + 1)^3.
    `unbiased` leaves the pairs of a sample with itself out: then it can be negative, and is very
    much so for some sets spread far too wide. With them it is the distance of the two sets, which
    is not less than 0.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_pairs(a: Tensor) -> Tensor:
        n, k = len(a), kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1)) if unbiased else k.mean()

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class GGDM:
    """x_{n+1} = sum_{j<=n} of_states[n, j] x_j + of_x0[n] x0 + of_noise[n] z: not Markovian.

    times      [N + 1] falling: the only ones that it knows, in order
    of_states  [N, N], read on and below the diagonal: of every state so far
    of_x0      [N], of the prediction at x_n
    of_noise   [N], of fresh noise

    `from_ddim` gives coefficients to start from. The paper ties them so that the marginals are
    those of the diffusion, or frees those of the prediction; here all are free. One call a step;
    gradients flow to the coefficients. Without a generator no noise is drawn, which raises
    ValueError where of_noise is not 0; so does a step that is not the next of `times`.
    """

    times: Tensor
    of_states: Tensor
    of_x0: Tensor
    of_noise: Tensor

    def __post_init__(self) -> None:
        n = len(self.times) - 1
        found = [list(each.shape) for each in (self.of_states, self.of_x0, self.of_noise)]
        if n < 1 or found != [[n, n], [n], [n]]:
            raise ValueError(
                "GGDM needs times [N + 1], of_states [N, N], of_x0 [N] and of_noise [N], got "
                f"{list(self.times.shape)}, {found[0]}, {found[1]} and {found[2]}."
            )

    @classmethod
    def from_ddim(cls, schedule: NoiseSchedule, times: Tensor, eta: float = 0.0) -> GGDM:
        """DDIM at `eta` on these times [N + 1], which have to fall."""
        if bool((times.diff() >= 0).any()):
            raise ValueError("GGDM's times must fall strictly.")
        of_x, of_x0, of_noise = ddim_coefficients(schedule, times[:-1], times[1:], eta)
        return cls(times=times, of_states=torch.diag(of_x), of_x0=of_x0, of_noise=of_noise)

    @property
    def order(self) -> int:
        """DDIM's; learned coefficients are good for their own N steps only."""
        return 1

    def start(self) -> tuple[Tensor, ...]:
        return ()

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: tuple[Tensor, ...],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        n, states = len(state), (*state, x)
        if n + 1 >= len(self.times) or not self._is_next(n, t, s):
            raise ValueError("GGDM goes through its own times only. Pass sampler.times to sample.")
        x_s = self.of_x0[n].to(x) * denoiser(x, t).x0
        for weight, each in zip(self.of_states[n, : n + 1].to(x), states, strict=True):
            x_s = x_s + weight * each
        if generator is not None:
            x_s = x_s + self.of_noise[n].to(x) * noise_like(x, generator)
        elif bool(self.of_noise[n] != 0):
            raise ValueError("This GGDM draws noise. Pass a generator, or set of_noise to 0.")
        return x_s, states

    def _is_next(self, n: int, t: Tensor, s: Tensor) -> bool:
        known = self.times.to(t)
        return bool((((t - known[n]).abs() < 1e-6) & ((s - known[n + 1]).abs() < 1e-6)).all())


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How long `search_sampler` looks, and in what steps."""

    rounds: int = 200
    batch_size: int = 256
    learning_rate: float = 0.01
    check_every: int = 10
    """rounds; after as many the coefficients are compared with the best so far"""

    def __post_init__(self) -> None:
        for name in ("rounds", "check_every"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.batch_size >= 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")


def search_sampler(
    sampler: GGDM,
    denoiser: Denoiser,
    data: Tensor,
    generator: torch.Generator,
    *,
    config: SearchConfig | None = None,
    features: Callable[[Tensor], Tensor] = lambda x: x.flatten(1),
    cond: Conditioning | None = None,
) -> GGDM:
    """The sampler with the coefficients that bring its samples nearest to data [M, ...] (DDSS).

    Adam on `kernel_distance` between `features` [B, D] of samples and of data, differentiated
    through the sampler. Samples start as data noised to the first time, with the noise drawn
    anew each round; `cond` is of the M data. All coefficients learn, but of_noise stays 0 where
    all of it is.

    Every `check_every` rounds, and before the first, samples from the first half of `data` and
    one fixed noise are compared with the second half: the best coefficients there are returned,
    so that they are never worse than those given. Raises ValueError for fewer than two batches of
    data.
    """
    config = config or SearchConfig()
    if len(data) < 2 * config.batch_size:
        raise ValueError(
            f"search_sampler needs at least two batches of data, 2 x {config.batch_size}, got "
            f"{len(data)}. Lower batch_size."
        )
    noisy = bool((sampler.of_noise != 0).any())
    learned = replace(
        sampler,
        of_states=sampler.of_states.detach().clone().requires_grad_(),
        of_x0=sampler.of_x0.detach().clone().requires_grad_(),
        of_noise=sampler.of_noise.detach().clone().requires_grad_(noisy),
    )
    leaves = [learned.of_states, learned.of_x0, *([learned.of_noise] if noisy else [])]
    optimizer = torch.optim.Adam(leaves, lr=config.learning_rate)
    held_seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))

    def distance(
        starts: Tensor, wanted: Tensor, noise: torch.Generator, *, unbiased: bool = True
    ) -> Tensor:
        first = sampler.times[:1].to(data.device).expand(len(starts))
        x = data[starts]
        x = diffuse(denoiser.schedule, x, noise_like(x, noise), first)
        chosen = None if cond is None else cond.select(starts)
        reached = sample(denoiser, learned, sampler.times, x, chosen, noise if noisy else None).x
        return kernel_distance(features(reached), features(data[wanted]), unbiased=unbiased)

    @torch.no_grad()
    def held_distance() -> float:
        half = len(data) // 2
        everything = torch.arange(len(data), device=data.device)
        held = torch.Generator(generator.device).manual_seed(held_seed)
        # With bias: an unbiased distance falls below 0 for samples that are spread far too wide.
        return distance(everything[:half], everything[half:], held, unbiased=False).item()

    def values() -> GGDM:
        return replace(
            sampler,
            of_states=learned.of_states.detach().clone(),
            of_x0=learned.of_x0.detach().clone(),
            of_noise=learned.of_noise.detach().clone(),
        )

    best, best_distance = values(), held_distance()
    for each in range(1, config.rounds + 1):
        shuffled = torch.randperm(len(data), generator=generator, device=generator.device)
        starts, wanted = shuffled[: 2 * config.batch_size].to(data.device).chunk(2)
        optimizer.zero_grad()
        distance(starts, wanted, generator).backward()
        optimizer.step()
        if each % config.check_every == 0 or each == config.rounds:
            now = held_distance()
            if now < best_distance:
                best, best_distance = values(), now
    return best
