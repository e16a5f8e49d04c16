"""Two evaluations over the same prompts and seeds: what changed, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sds3d.errors import BadInput

FIGURES = {
    "r_precision": "retrieved",
    "azimuth_accuracy": "azimuth",
    "silhouette_iou": "silhouette_iou",
}
"""The figures of a summary that are compared, with the field of a row that each is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One mesh of an evaluation: a row of its report, found again by seed and prompt."""

    seed: int
    prompt: str
    row: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean of after - before over pairs, with a 95 % interval.

    Attributes:
        pairs: Meshes that both evaluations measured and to which the figure applies.
        prompts: Different prompts among them.
        before, after: The two means over the same pairs.
    """

    pairs: int
    prompts: int
    before: float
    after: float
    difference: float
    low: float
    high: float


def read_reports(paths: Sequence[Path]) -> list[Evaluated]:
    """The rows of reports that `sds3d evaluate` wrote; of a folder, of every report in it.

    Raises BadInput for what is none, and for the same prompt and seed twice.
    """
    found: dict[tuple[int, str], Evaluated] = {}
    for path in paths:
        files = sorted(path.glob("evaluation-*.json")) if path.is_dir() else [path]
        if not files:
            raise BadInput(f"{path} holds no evaluation-*.json: give the --out of sds3d evaluate")
        for file in files:
            try:
                document = json.loads(file.read_text(encoding="utf-8"))
                seed = int(document["summary"]["seed"])
                rows = [
                    Evaluated(seed=seed, prompt=str(row["prompt"]), row=row)
                    for row in document["rows"]
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"{file} is no report of sds3d evaluate ({type(error).__name__}: {error})"
                ) from error
            for one in rows:
                if found.setdefault((seed, one.prompt), one) is not one:
                    raise BadInput(
                        f"{file} measures {one.prompt!r} with seed {seed} once more: give each "
                        "evaluation once"
                    )
    return list(found.values())


def paired_difference(
    before: Sequence[Evaluated],
    after: Sequence[Evaluated],
    field: str,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """The bootstrap's percentile interval (Efron 1979) for the mean of paired differences.

    Whole prompts are drawn again, each with all its seeds, since meshes of one prompt are alike.
    Pairs to which `field` does not apply (None in both) are left out.

    Raises BadInput where the two do not hold the same prompts and seeds, or nothing is left.
    """
    left = {(one.seed, one.prompt): one.row[field] for one in before}
    right = {(one.seed, one.prompt): one.row[field] for one in after}
    if left.keys() != right.keys():
        seed_, prompt = sorted(left.keys() ^ right.keys())[0]
        raise BadInput(
            f"only one of the two evaluations holds {prompt!r} with seed {seed_}: run both with "
            "the same --prompts, --seed and --preset"
        )
    keys = [key for key in left if left[key] is not None and right[key] is not None]
    if not keys:
        raise BadInput(f"{field} applies to none of the prompts: evaluate more of them")
    old = np.array([float(left[key]) for key in keys])
    new = np.array([float(right[key]) for key in keys])
    names, of_prompt = np.unique([prompt for _, prompt in keys], return_inverse=True)
    sums = np.bincount(of_prompt, new - old)
    counts = np.bincount(of_prompt)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return PairedDifference(
        pairs=len(keys),
        prompts=len(names),
        before=float(old.mean()),
        after=float(new.mean()),
        difference=float((new - old).mean()),
        low=float(low),
        high=float(high),
    )
