"""What the papers claim of each other, held against the rows of distillation_table.py.

A claim is met where it holds beyond the error bars: the two means are further apart than the sum
of their standard deviations over the seeds (the sample's, over n - 1), of which it takes three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FIGURES = {"mixture": "sliced_wasserstein", "mixture-1d": "sliced_wasserstein", "digits": "frechet"}
"""By ground, the distance to the data by which its students are compared."""
NAMES = {
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Frechet",
    "mode_weight_error": "mode weight error",
    "error": "error",
}
PAPERS_SHARE = 0.10
"""Of its teacher's figure: how much worse progressive distillation may be at 4 evaluations."""
KEPT, COLLAPSED = 0.1, 0.3
"""Errors of a mode's weight: below the one all modes are kept, above the other they are not. (All
samples in one mode of weight w are an error of 1 - w.)"""
FEWEST_SEEDS = 3
TOO_FEW = "too few seeds"

Rows = Sequence[Mapping[str, Any]]


def claims_of(ground: str, rows: Rows) -> list[str]:
    """The claims as lines of a Markdown table, those whose methods were measured there."""
    figure = FIGURES[ground]
    lines = [
        _within(rows, figure),
        _less(rows, figure, ("progressive", 1), ("kd", 1), "one-step KD is worse than progressive"),
        _less(
            rows, figure, ("cd", 2), ("cd", 1), "consistency distillation gains by a second step"
        ),
        _less(rows, figure, ("ct", 2), ("ct", 1), "consistency training gains by a second step"),
        _not_rising(rows),
        *(_unipc(rows, grid) for grid in ("log-SNR", "t")),
        *(_collapses(rows, kept) for kept in ("vsd", "diff-instruct")),
        *(
            _less(rows, "frechet", (kept, 1), ("sds", 1), f"{kept} is nearer to the data than SDS")
            for kept in ("vsd", "diff-instruct")
        ),
        _less(rows, figure, ("dmd2", 1), ("kd", 1), "DMD2 is ahead of KD at one step"),
    ]
    return [f"| {line[0]} | {ground} | {line[1]} | {line[2]} |" for line in lines if line]


Line = tuple[str, str, str]


def _values(
    rows: Rows, figure: str, method: str, nfe: int, grid: str | None = None
) -> dict[int, float]:
    """By seed."""
    return {
        row["seed"]: row[figure]
        for row in rows
        if (row["method"], row["nfe"], row.get("grid")) == (method, nfe, grid) and figure in row
    }


def spread(values: np.ndarray) -> float:
    """The sample's standard deviation over seeds; NaN of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _said(name: str, values: np.ndarray) -> str:
    return f"{name} {values.mean():.3g}" + (f" ± {spread(values):.1g}" if len(values) > 1 else "")


def _paired(one: dict[int, float], other: dict[int, float]) -> tuple[np.ndarray, np.ndarray] | None:
    """The figures of the seeds that both have; None where there is none."""
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    return np.array([one[s] for s in seeds]), np.array([other[s] for s in seeds])


def verdict(less: np.ndarray, more: np.ndarray) -> str:
    """Whether the first figures are below the others beyond the error bars."""
    if min(len(less), len(more)) < FEWEST_SEEDS:
        return TOO_FEW
    apart = more.mean() - less.mean()
    if apart <= 0:
        return "NOT met"
    return "met" if apart > spread(less) + spread(more) else "NOT met beyond the error bars"


def _less(
    rows: Rows, figure: str, better: tuple[str, int], worse: tuple[str, int], claim: str
) -> Line | None:
    found = _paired(_values(rows, figure, *better), _values(rows, figure, *worse))
    if found is None:
        return None
    labels = [f"{name} at {nfe}" for name, nfe in (better, worse)]
    said = ", ".join(_said(f"`{n}`", v) for n, v in zip(labels, found, strict=True))
    return claim, f"{NAMES[figure]}: {said}", verdict(*found)


def _collapses(rows: Rows, kept: str) -> Line | None:
    """By the bounds, not by a comparison: to lose fewer modes than SDS is not to keep them."""
    key = "mode_weight_error"
    found = _paired(_values(rows, key, kept, 1), _values(rows, key, "sds", 1))
    if found is None:
        return None
    keeps, sds = found
    said = f"{NAMES[key]}: {_said(f'`{kept}`', keeps)}, {_said('`sds`', sds)}"
    if len(keeps) < FEWEST_SEEDS:
        judged = TOO_FEW
    elif keeps.mean() >= KEPT or sds.mean() <= COLLAPSED:
        judged = "NOT met"
    elif keeps.mean() + spread(keeps) < KEPT and sds.mean() - spread(sds) > COLLAPSED:
        judged = "met"
    else:
        judged = "NOT met beyond the error bars"
    return f"SDS collapses (above {COLLAPSED}) where {kept} does not (below {KEPT})", said, judged


def _within(rows: Rows, figure: str) -> Line | None:
    """Progressive distillation at 4 evaluations against the teacher's 16 that it folds up."""
    found = _paired(_values(rows, figure, "progressive", 4), _values(rows, figure, "teacher", 16))
    if found is None:
        return None
    student, teacher = found
    excess = student / teacher - 1
    said = f"{_said('`progressive`', student)}, {_said('teacher in 16', teacher)}"
    if len(excess) < FEWEST_SEEDS:
        judged = TOO_FEW
    elif excess.mean() + spread(excess) <= PAPERS_SHARE:
        judged = "met"
    elif excess.mean() <= PAPERS_SHARE:
        judged = "NOT met beyond the error bars"
    else:
        judged = "NOT met"
    return (
        "progressive at 4 evaluations is within 10 % of its teacher",
        f"{NAMES[figure]}: {said}: {100 * excess.mean():+.1f} ± {100 * spread(excess):.1f} %",
        judged,
    )


def _not_rising(rows: Rows) -> Line | None:
    """Transport cost of independent pairs, of the teacher's, and after each round."""
    costs = {row["seed"]: row["transport"] for row in rows if "transport" in row}
    if not costs:
        return None
    by_round = np.array([costs[seed] for seed in sorted(costs)])
    names = ["independent", "teacher", *(f"round {k}" for k in range(1, by_round.shape[1] - 1))]
    said = ", ".join(_said(name, c) for name, c in zip(names, by_round.T, strict=True))
    rises = np.diff(by_round, axis=1)
    if len(rises) < FEWEST_SEEDS:
        judged = TOO_FEW
    else:
        judged = "NOT met" if (rises.mean(0) > rises.std(0, ddof=1)).any() else "met"
    return "reflow's transport cost does not rise", said, judged


def _unipc(rows: Rows, grid: str) -> Line | None:
    found = _paired(*(_values(rows, "error", name, 10, grid) for name in ("unipc", "ddim")))
    if found is None:
        return None
    said = ", ".join(
        _said(name, values) for name, values in zip(("UniPC", "DDIM"), found, strict=True)
    )
    claim = f"UniPC is nearer than DDIM to the converged samples in 10 steps even in {grid}"
    return claim, said, verdict(*found)
