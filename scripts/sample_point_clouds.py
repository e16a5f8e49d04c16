"""Sample the point clouds of the `clouds` ground from the toybox world's own meshes.

    python scripts/sample_point_clouds.py --out assets/clouds

One variation or more of every kind, points uniform on the surface, centred, one scale for all.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
import tyro
from safetensors.torch import save_file

from sds3d.evaluate.exact import exact_mesh
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, build


@dataclass(frozen=True, kw_only=True)
class Options:
    """How many, and where to."""

    out: Path = Path("assets/clouds")
    variations: int = 2
    points: int = 64
    seed: int = 0


def main(options: Options) -> None:
    clouds = []
    for index, kind in enumerate(KIND_NAMES):
        for variation in range(options.variations):
            rng = np.random.default_rng([options.seed, index, variation])
            made = exact_mesh(build(SceneSpec(kind=kind, color="red"), rng), colored=False)
            mesh = trimesh.Trimesh(made.vertices, made.faces, process=False)
            even = trimesh.sample.sample_surface_even(
                mesh, options.points, seed=int(rng.integers(2**31))
            )
            points = np.asarray(even[0])
            # Even sampling may come out a few short.
            while len(points) < options.points:
                more = trimesh.sample.sample_surface(
                    mesh, options.points - len(points), seed=int(rng.integers(2**31))
                )
                points = np.concatenate([points, np.asarray(more[0])])
            clouds.append(points - points.mean(0))
        print(f"{kind} ({index + 1}/{len(KIND_NAMES)})", file=sys.stderr)
    stacked = torch.tensor(np.stack(clouds), dtype=torch.float32)
    stacked = stacked / stacked.std()
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({"points": stacked.half()}, options.out / "clouds.safetensors")
    text = {"kinds": list(KIND_NAMES), "variations": options.variations, "seed": options.seed}
    (options.out / "clouds.json").write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
