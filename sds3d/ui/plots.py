"""Small line plots as SVG, in the page's own colours: no library, no picture to load."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

WIDTH, HEIGHT = 320, 96
LEFT, RIGHT, TOP, BOTTOM = 4, 4, 6, 6
MOST_POINTS = 200


def line_plot(
    title: str, series: Mapping[str, Mapping[int, float]], *, steps: int, note: str = ""
) -> str:
    """`series` by name, each a value for some steps of 0 to `steps`; "" where none has two.

    The vertical axis spans the values; the last one of each line is written beside the title.
    """
    lines = {name: _finite(values) for name, values in series.items()}
    lines = {name: values for name, values in lines.items() if len(values) >= 2}
    if not lines:
        return ""
    values = [value for line in lines.values() for value in line.values()]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    drawn = "".join(
        f'<polyline class="line-{number}" points="{_points(line, steps, low, high)}"/>'
        for number, line in enumerate(lines.values())
    )
    last = ", ".join(
        f'<b class="line-{number}">{html.escape(name)}</b> {line[max(line)]:.3g}'
        for number, (name, line) in enumerate(lines.items())
    )
    label = html.escape(f"{title}, from {low:.3g} to {high:.3g}")
    return (
        f'<figure class="plot"><figcaption>{html.escape(title)}: {last}'
        f"{f' <small>{html.escape(note)}</small>' if note else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{drawn}</svg></figure>'
    )


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {step: value for step, value in sorted(values.items()) if math.isfinite(value)}


def _points(line: Mapping[int, float], steps: int, low: float, high: float) -> str:
    items = list(line.items())
    stride = max(1, math.ceil(len(items) / MOST_POINTS))
    kept = [*items[:-1:stride], items[-1]]
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return " ".join(
        f"{LEFT + across * min(1.0, step / max(1, steps)):.1f},"
        f"{TOP + up * (high - value) / (high - low):.1f}"
        for step, value in kept
    )
