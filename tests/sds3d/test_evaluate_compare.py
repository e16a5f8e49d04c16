"""Two evaluations in pairs: the interval on known cases, and reports that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sds3d.errors import BadInput
from sds3d.evaluate.compare import Evaluated, paired_difference, read_reports


def evaluated(values: np.ndarray, prompts: int | None = None) -> list[Evaluated]:
    """One mesh for each value, of so many different prompts."""
    prompts = prompts or len(values)
    return [
        Evaluated(seed=i // prompts, prompt=f"prompt {i % prompts}", row={"iou": float(value)})
        for i, value in enumerate(values)
    ]


def test_a_shift_of_everything_is_certain() -> None:
    values = np.random.default_rng(0).uniform(size=40)
    found = paired_difference(evaluated(values), evaluated(values - 0.25), "iou")
    assert found.pairs == found.prompts == 40
    for value in (found.difference, found.low, found.high):
        assert value == pytest.approx(-0.25)
    assert found.before - found.after == pytest.approx(0.25)


def test_the_interval_is_the_normal_one_for_many_independent_pairs() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(size=400)
    change = rng.normal(0.1, 0.5, size=400)
    found = paired_difference(evaluated(before), evaluated(before + change), "iou")
    error = float(change.std(ddof=1)) / math.sqrt(400)
    assert found.difference == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(change.mean() + 1.96 * error, abs=0.1 * error)
    # What both have in common does not count: unpaired the interval would be wider.
    spread = paired_difference(evaluated(before * 0), evaluated(before * 9 + change), "iou")
    assert spread.high - spread.low > 2 * (found.high - found.low)


def test_meshes_of_one_prompt_are_no_evidence_of_their_own() -> None:
    """Ten seeds of each prompt that change alike are as sure as one seed."""
    change = np.random.default_rng(2).normal(size=30)
    none, many = np.zeros(30), np.tile(change, 10)
    once = paired_difference(evaluated(none), evaluated(change), "iou")
    often = paired_difference(evaluated(many * 0, 30), evaluated(many, 30), "iou")
    assert (often.pairs, often.prompts) == (300, 30)
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)
    apart = paired_difference(evaluated(many * 0), evaluated(many), "iou")
    assert apart.high - apart.low < 0.5 * (often.high - often.low)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        change = (rng.uniform(size=60) < 0.1).astype(float) - (rng.uniform(size=60) < 0.1)
        found = paired_difference(evaluated(np.zeros(60)), evaluated(change), "iou", resamples=1000)
        held += found.low <= 0 <= found.high
    assert 0.9 < held / 300 < 0.99


def test_figures_that_do_not_apply_are_left_out() -> None:
    before, after = evaluated(np.zeros(4)), evaluated(np.ones(4))
    rows: list[dict[str, Any]] = [{"iou": None}, *[dict(one.row) for one in after[1:]]]
    after = [
        Evaluated(seed=one.seed, prompt=one.prompt, row=row)
        for one, row in zip(after, rows, strict=True)
    ]
    assert paired_difference(before, after, "iou").pairs == 3


def report(folder: Path, seed: int, values: list[float], prompts: str = "abc") -> Path:
    path = folder / f"evaluation-fast-{seed}-{len(values)}.json"
    rows = [{"prompt": p, "iou": v} for p, v in zip(prompts, values, strict=False)]
    path.write_text(json.dumps({"summary": {"seed": seed}, "rows": rows}))
    return path


def test_reports_are_read_from_files_and_folders(tmp_path: Path) -> None:
    first, second = report(tmp_path, 0, [0.1, 0.2, 0.3]), report(tmp_path, 1, [0.4, 0.5])
    found = read_reports([tmp_path])
    assert [(one.seed, one.prompt) for one in found] == [
        (0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"),
    ]  # fmt: skip
    assert read_reports([first, second]) == found


def test_what_cannot_be_paired_is_said(tmp_path: Path) -> None:
    path = report(tmp_path, 0, [0.1, 0.2, 0.3])
    with pytest.raises(BadInput, match="'a' with seed 0 once more"):
        read_reports([path, tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no evaluation"):
        read_reports([tmp_path / "empty"])
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(BadInput, match="no report of sds3d evaluate"):
        read_reports([tmp_path / "text.json"])
    whole = read_reports([path])
    with pytest.raises(BadInput, match="only one of the two evaluations holds 'c' with seed 0"):
        paired_difference(whole, whole[:2], "iou")
    nothing = [Evaluated(seed=0, prompt="a", row={"azimuth": None})]
    with pytest.raises(BadInput, match="applies to none"):
        paired_difference(nothing, nothing, "azimuth")
