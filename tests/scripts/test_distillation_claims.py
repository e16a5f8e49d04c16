"""scripts/distillation_claims.py: what is held to be met, and what the table makes of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distillation_claims import claims_of, verdict
from distillation_table import between, markdown


def rows(method: str, nfe: int, figure: str, *values: float, **more: Any) -> list[dict[str, Any]]:
    """One for each seed."""
    return [
        {"method": method, "nfe": nfe, "seed": seed, figure: value, **more}
        for seed, value in enumerate(values)
    ]


def test_a_claim_is_met_beyond_the_error_bars_alone() -> None:
    """The sample's bars, over n - 1, are 0.1 each; over n they would be 0.082."""
    low, high = np.array([1.0, 1.1, 1.2]), np.array([1.4, 1.5, 1.6])
    assert verdict(low, high) == "met"
    assert verdict(low, high - 0.22) == "NOT met beyond the error bars"
    assert verdict(low[:2], high) == verdict(low, high[:2]) == "too few seeds"
    assert verdict(high, low) == "NOT met"
    assert verdict(low, low) == "NOT met"


def found(ground: str, measured: list[dict[str, Any]]) -> dict[str, str]:
    """Claim to verdict."""
    cells = [line.strip("| ").split(" | ") for line in claims_of(ground, measured)]
    assert all(each[1] == ground for each in cells)
    return {each[0]: each[3] for each in cells}


def test_claims_are_those_of_the_methods_that_were_measured() -> None:
    key = "sliced_wasserstein"
    measured = [
        *rows("teacher", 16, key, 0.10, 0.11, 0.105),
        *rows("progressive", 4, key, 0.105, 0.115, 0.11),
        *rows("progressive", 1, key, 0.12, 0.12, 0.12),
        *rows("kd", 1, key, 0.2, 0.21, 0.2),
        *rows("dmd2", 1, key, 0.3, 0.31, 0.3),
        *rows("unipc", 10, "error", 0.3, 0.3, 0.3, grid="t"),
        *rows("ddim", 10, "error", 0.1, 0.1, 0.1, grid="t"),
        *rows("unipc", 10, "error", 0.1, 0.1, 0.1, grid="log-SNR"),
        *rows("ddim", 10, "error", 0.3, 0.3, 0.3, grid="log-SNR"),
        *rows("sds", 1, "mode_weight_error", 0.8, 0.8, 0.8),
        *rows("vsd", 1, "mode_weight_error", 0.05, 0.06, 0.05),
    ]
    unipc = "UniPC is nearer than DDIM to the converged samples in 10 steps even in"
    assert found("mixture", measured) == {
        "progressive at 4 evaluations is within 10 % of its teacher": "met",
        "one-step KD is worse than progressive": "met",
        f"{unipc} log-SNR": "met",
        f"{unipc} t": "NOT met",
        "SDS collapses (above 0.3) where vsd does not (below 0.1)": "met",
        "DMD2 is ahead of KD at one step": "NOT met",
    }


@pytest.mark.parametrize(("last", "judged"), [(0.29, "met"), (0.5, "NOT met")])
def test_a_rising_transport_cost_is_seen_in_any_round(last: float, judged: str) -> None:
    costs = [[3.6, 0.4, 0.3, last], [3.5, 0.41, 0.31, last + 0.01], [3.55, 0.4, 0.3, last]]
    measured = [
        row
        for seed, cost in enumerate(costs)
        for row in [{"method": "reflow", "nfe": 1, "seed": seed, "transport": cost}]
    ]
    assert found("mixture", measured) == {"reflow's transport cost does not rise": judged}


def test_a_teacher_that_is_missed_by_more_is_said_so() -> None:
    teacher = rows("teacher", 16, "frechet", 4.0, 5.0, 4.0)
    claim = "progressive at 4 evaluations is within 10 % of its teacher"
    near = found("digits", teacher + rows("progressive", 4, "frechet", 4.2, 5.7, 4.3))
    assert near[claim] == "NOT met beyond the error bars"
    far = found("digits", teacher + rows("progressive", 4, "frechet", 6.0, 7.0, 6.0))
    assert far[claim] == "NOT met"
    few = found("digits", teacher + rows("progressive", 4, "frechet", 4.2, 5.1))
    assert few[claim] == "too few seeds"


def test_to_lose_fewer_modes_than_sds_is_not_to_keep_them() -> None:
    key = "mode_weight_error"
    for kept, sds, judged in (
        ((0.05, 0.06, 0.05), (0.8, 0.8, 0.8), "met"),
        ((0.05, 0.11, 0.08), (0.8, 0.8, 0.8), "NOT met beyond the error bars"),
        ((0.5, 0.5, 0.5), (0.8, 0.8, 0.8), "NOT met"),
        ((0.05, 0.06, 0.05), (0.2, 0.2, 0.2), "NOT met"),
        ((0.05, 0.06), (0.8, 0.8), "too few seeds"),
    ):
        verdicts = found("mixture", rows("vsd", 1, key, *kept) + rows("sds", 1, key, *sds))
        assert [*verdicts.values()] == [judged]


def test_the_table_says_how_many_seeds_there_are_and_what_diverged() -> None:
    table = markdown(
        [
            *rows("kd", 1, "frechet", 3.0, 5.0, seconds=7.4),
            {"method": "sid", "nfe": 1, "seed": 0, "diverged": "at step 3"},
            *rows("ddim", 10, "error", 1.0, grid="t"),
        ]
    )
    assert table.splitlines()[0] == "| method | NFE | seeds | Frechet | training s |"
    assert table.splitlines()[2:] == [
        "| `kd` | 1 | 2 | 4.00 ± 1.41 | 7 |",
        "| `sid` | 1 | 1 | diverged | diverged |",
    ]


def test_only_what_is_between_the_marks_changes() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert between(page, "x", "new | \\1") == "a\n<!-- x -->\nnew | \\1\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="0 places"):
        between(page, "y", "new")
