"""Checks of options, whose errors name the option and the remedy."""

from __future__ import annotations

import math
import reprlib

from .errors import ConfigError


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise ConfigError that names option, value and remedy unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} is {reprlib.repr(value)}: {remedy}")


def require_number(
    name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raise ConfigError that names the option unless `value` is finite and in its range."""
    inside = low < value <= high if open_low else low <= value <= high
    bound = f"above {low:g}" if open_low else f"at least {low:g}"
    if high < math.inf:
        bound += f" and at most {high:g}"
    require(inside and abs(value) < math.inf, name, value, f"give a number {bound}")


def require_range(name: str, pair: tuple[float, float], low: float, high: float) -> None:
    """Raise ConfigError that names the option unless both ends are finite and in its range."""
    for value in pair:
        require_number(name, value, low, high)
