"""What is measured of one mesh file against the scene that its prompt asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import KDTree

from sds3d.evaluate.exact import LOOK_AT, exact_mesh, exact_solid
from sds3d.evaluate.layers import AZIMUTHS_DEG, Shape, color_weights
from sds3d.evaluate.matching import (
    ASYMMETRIC_FROM,
    BETWEEN_DEG,
    Pictures,
    azimuth_accuracy,
    candidate_distances,
    exact_azimuth_share,
    silhouette_ious,
)
from sds3d.evaluate.prompts import distractors, form_of, plain_candidates
from sds3d.evaluate.raycast import SeenMesh, UnreadableMesh, read_glb, render
from sds3d.evaluate.references import References
from sds3d.toybox.captions import plain_caption
from sds3d.toybox.scenes import SceneSpec

SURFACE_POINTS = 10_000
F_SCORE_TOLERANCE = 0.05
"""Of the mesh's size: the longest side, which is 1 in the export's frame."""

FRAME_TOLERANCE = 0.002


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one mesh; a run without a mesh is wrong or 0 in every one of them.

    Attributes:
        valid: A readable GLB whose surface is closed to the eye (consistently wound, of positive
            volume) and stands in the export's frame.
        retrieved: The nearest scene is the prompt's own, of every kind in every colour and, for a
            composed prompt, itself and its distractors.
        kind, color: The same scene's kind or main colour is the one asked for.
        composition: The own scene is nearest among its distractors; None for one colour.
        silhouette_iou: With the nearest variation.
        f_score: With the same variation, at 5 % of the size.
        azimuth: Share of views whose best match is within 30 degrees; None where exact renders
            do not tell their azimuth either.
        nearest: What it looks most like, in words; None without a mesh.
        problem: Why there is no mesh or why it is not valid.
    """

    valid: bool = False
    retrieved: bool = False
    kind: bool = False
    color: bool = False
    composition: bool | None = None
    silhouette_iou: float = 0.0
    f_score: float = 0.0
    azimuth: float | None = None
    nearest: str | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """Measures meshes; keeps the references and what follows from them alone."""

    def __init__(self, references: References, seed: int) -> None:
        self.references = references
        self._seed = seed
        self._asymmetric: dict[Shape, bool] = {}
        self._surfaces: dict[tuple[Shape, int], np.ndarray] = {}

    def tells_azimuth(self, shape: Shape) -> bool:
        """Whether a shape is asymmetric by the threshold on exact renders."""
        if shape not in self._asymmetric:
            share = exact_azimuth_share(self.references, shape)
            self._asymmetric[shape] = share >= ASYMMETRIC_FROM
        return self._asymmetric[shape]

    def missing(self, spec: SceneSpec, problem: str) -> Measured:
        """The figures of a run that left no file."""
        form = form_of(spec)
        return Measured(
            composition=None if form == "one colour" else False,
            azimuth=0.0 if self.tells_azimuth(Shape.of(spec)) else None,
            problem=problem,
        )

    def measure(self, spec: SceneSpec, path: Path) -> Measured:
        """The figures of the mesh file at `path` as an answer to the prompt of `spec`."""
        try:
            seen = read_glb(path)
        except UnreadableMesh as error:
            return self.missing(spec, str(error))
        problem = frame_problem(seen)
        views = render(seen, np.concatenate([AZIMUTHS_DEG, BETWEEN_DEG]))
        half = len(AZIMUTHS_DEG)
        pictures = Pictures.of(views[:half], views[half:])
        return self._judge(spec, seen, pictures, problem)

    def _judge(
        self, spec: SceneSpec, seen: SeenMesh, pictures: Pictures, problem: str | None
    ) -> Measured:
        form = form_of(spec)
        shape = Shape.of(spec)
        plain = plain_candidates()
        others = distractors(spec, self._seed)
        own = [] if form == "one colour" else [spec]
        candidates = [*plain, *own, *others]
        distances = candidate_distances(candidates, pictures.pooled, self.references)
        nearest = candidates[int(distances.argmin())]
        composition = None
        if own:
            composition = bool(distances[len(plain)] < distances[len(plain) + 1 :].min())
        reference = self.references(shape)
        ious = silhouette_ious(reference, pictures.silhouettes)
        variation = int(ious.argmax())
        azimuth = None
        if self.tells_azimuth(shape):
            weights = color_weights([(spec.color, spec.part_color or spec.support_color)])
            azimuth = azimuth_accuracy(reference, weights, pictures.between, BETWEEN_DEG)
        return Measured(
            valid=problem is None,
            retrieved=nearest == spec,
            kind=nearest.kind == spec.kind,
            color=nearest.color == spec.color,
            composition=composition,
            silhouette_iou=float(ious[variation]),
            f_score=f_score(surface_points(seen.mesh), self._surface(spec, variation)),
            azimuth=azimuth,
            nearest=plain_caption(nearest),
            problem=problem,
        )

    def _surface(self, spec: SceneSpec, variation: int) -> np.ndarray:
        key = (Shape.of(spec), variation)
        if key not in self._surfaces:
            mesh = exact_mesh(exact_solid(spec, variation), colored=False)
            self._surfaces[key] = surface_points(
                trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
            )
        return self._surfaces[key]


def frame_problem(seen: SeenMesh) -> str | None:
    """What keeps a mesh from being valid, None where nothing does."""
    mesh = trimesh.Trimesh(seen.mesh.vertices + LOOK_AT, seen.mesh.faces, process=False)
    # Vertices are repeated along the texture's seams; as positions they are one.
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    if not mesh.is_winding_consistent:
        return "its faces are wound inconsistently"
    if not mesh.volume > 0:
        return "its volume is not positive"
    low, high = mesh.bounds
    if abs(float((high - low).max()) - 1.0) > FRAME_TOLERANCE:
        return f"its longest side is {(high - low).max():.3f}, not 1"
    middle = (low + high) / 2
    if max(abs(low[1]), abs(middle[0]), abs(middle[2])) > FRAME_TOLERANCE:
        return "it does not rest centred on the ground"
    return None


def surface_points(mesh: trimesh.Trimesh) -> np.ndarray:
    """Points [N, 3] spread evenly over a surface, the same for the same mesh."""
    return np.asarray(trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=0)[0])


def f_score(points: np.ndarray, exact: np.ndarray) -> float:
    """Harmonic mean of precision and recall of surface points [N, 3] (arXiv 1905.03678, Eq. 4-6).

    Precision is the share of `points` within `F_SCORE_TOLERANCE` of an exact one, recall the share
    of the exact ones within it of a point.
    """
    within = F_SCORE_TOLERANCE
    precision = (KDTree(exact).query(points)[0] < within).mean()
    recall = (KDTree(points).query(exact)[0] < within).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))
