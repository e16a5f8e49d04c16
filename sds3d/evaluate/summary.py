"""From the figures of single meshes to those of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from sds3d.evaluate.measure import Measured
from sds3d.evaluate.prompts import Asked


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt with what was measured; `seconds` by stage, empty where nothing was made."""

    asked: Asked
    measured: Measured
    seconds: dict[str, float]


def _mean(values: Sequence[float | bool | None]) -> float | None:
    """Mean of the figures that apply; None where none does."""
    known = [float(value) for value in values if value is not None]
    return round(fmean(known), 4) if known else None


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over every prompt asked to which a figure applies; runs without a file are misses."""
    measured = [row.measured for row in rows]
    two = [r.measured.composition for r in rows if r.asked.form == "two colours"]
    stacked = [r.measured.composition for r in rows if r.asked.form == "stacked"]
    return {
        "prompts": len(rows),
        "r_precision": _mean([m.retrieved for m in measured]),
        "kind_accuracy": _mean([m.kind for m in measured]),
        "color_accuracy": _mean([m.color for m in measured]),
        "two_color_accuracy": _mean(two),
        "stacked_accuracy": _mean(stacked),
        "silhouette_iou": _mean([m.silhouette_iou for m in measured]),
        "f_score": _mean([m.f_score for m in measured]),
        "azimuth_accuracy": _mean([m.azimuth for m in measured]),
        "azimuth_prompts": sum(m.azimuth is not None for m in measured),
        "valid": _mean([m.valid for m in measured]),
    }


def grouped(rows: Sequence[Row]) -> dict[str, Any]:
    """`figures` of all prompts, of those from training pairs and of those from held-out ones."""
    return {
        "all": figures(rows),
        "training_pairs": figures([row for row in rows if not row.asked.held_out]),
        "held_out_pairs": figures([row for row in rows if row.asked.held_out]),
    }


def seconds_by_stage(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Median and largest seconds of each stage over the runs that were finished."""
    stages = dict.fromkeys(name for row in rows for name in row.seconds)
    found: dict[str, dict[str, float]] = {}
    for name in stages:
        values = [row.seconds[name] for row in rows if name in row.seconds]
        found[name] = {"median": round(median(values), 2), "max": round(max(values), 2)}
    return found


def quality(measured: Measured) -> tuple[float, ...]:
    """By which the best, the median and the worst mesh are chosen for the picture."""
    composed = 1.0 if measured.composition is None else float(measured.composition)
    azimuth = 1.0 if measured.azimuth is None else measured.azimuth
    return (
        float(measured.nearest is not None),
        float(measured.retrieved) + composed,
        measured.silhouette_iou + measured.f_score + azimuth,
    )
