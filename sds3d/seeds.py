"""A seed of its own for everything that a run draws."""

from __future__ import annotations

__all__ = ["step_seed"]


def step_seed(seed: int, step: int) -> int:
    """A generator seed of its own for every (seed, step): splitmix64's finaliser.

    Steps below 0 are what is drawn before the first: -1 - n for the n-th particle.
    """
    z = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1342543DE82EF95) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**63
