"""Meshes whose figures frame those of a run: a ball, the wrong thing, and the best possible."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from sds3d.evaluate.exact import exact_mesh, exact_solid, sphere_solid
from sds3d.evaluate.layers import VARIATIONS
from sds3d.evaluate.measure import Judge, Measured
from sds3d.export import export_mesh
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec
from sds3d.toybox.shapes import Solid

Baseline = Literal["sphere", "wrong kind", "exact"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

_FIRST_OTHER_VARIATION = 1000
assert _FIRST_OTHER_VARIATION > VARIATIONS


def baseline_solid(name: Baseline, spec: SceneSpec, index: int, seed: int) -> Solid:
    """The solid that stands in for the answer to prompt number `index`.

    "sphere" has the main colour; "wrong kind" is another kind in that colour; "exact" is the scene
    itself in a variation that is none of the references: what a perfect run would make.
    """
    variation = _FIRST_OTHER_VARIATION + index
    if name == "sphere":
        return sphere_solid(spec.color)
    if name == "exact":
        return exact_solid(spec, variation)
    rng = np.random.default_rng([seed, index, 32_452_843])
    others = [kind for kind in KIND_NAMES if kind not in (spec.kind, spec.support)]
    wrong = SceneSpec(kind=others[int(rng.integers(len(others)))], color=spec.color)
    return exact_solid(wrong, variation)


def measure_baseline(
    name: Baseline, spec: SceneSpec, index: int, seed: int, judge: Judge
) -> Measured:
    """The baseline's mesh through the export, read back and measured as a run's mesh is."""
    with tempfile.TemporaryDirectory() as folder:
        export_mesh(exact_mesh(baseline_solid(name, spec, index, seed)), Path(folder))
        return judge.measure(spec, Path(folder) / "mesh.glb")
