"""The evaluation's arithmetic on meshes whose figures are known."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from nerf.mesh import TexturedMesh
from nerf.mesh.textured_mesh import vertex_normals
from sds3d.errors import Sds3dError
from sds3d.evaluate.baselines import measure_baseline
from sds3d.evaluate.exact import (
    LOOK_AT,
    bounds,
    exact_mesh,
    exact_solid,
    shaded_colors,
    sphere_solid,
)
from sds3d.evaluate.layers import (
    AZIMUTHS_DEG,
    N_LAYERS,
    Reference,
    Shape,
    color_weights,
    exact_views,
    pool,
    render_layers,
)
from sds3d.evaluate.matching import (
    ALPHA_WEIGHT,
    BETWEEN_DEG,
    azimuth_accuracy,
    exact_azimuth_share,
    silhouette_ious,
    view_distances,
)
from sds3d.evaluate.measure import Judge, f_score, frame_problem, surface_points
from sds3d.evaluate.raycast import (
    DISTANCE,
    FOVY_DEG,
    SIDE,
    UnreadableMesh,
    camera_rays,
    read_glb,
    render,
    require_embree,
)
from sds3d.evaluate.references import References
from sds3d.export import export_mesh, normalise
from sds3d.export.glb import export_glb
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec
from sds3d.toybox.shapes import Solid

pytest.importorskip("embreex")

DUCK = SceneSpec(kind="duck", color="yellow")
CHAIR = SceneSpec(kind="chair", color="blue", part="legs", part_color="white")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """One variation in the place of sixteen: the arithmetic is the same."""
    folder = tmp_path_factory.mktemp("references")
    return Judge(References(folder, variations=1, threads=2), seed=0)


def _export(solid: Solid, folder: Path, turn: np.ndarray | None = None) -> Path:
    """The exact mesh of a solid as a run's GLB, its vertices multiplied by `turn`."""
    mesh = exact_mesh(solid)
    if turn is not None:
        vertices = (mesh.vertices @ turn.T).astype(np.float32)
        faces = mesh.faces if np.linalg.det(turn) > 0 else mesh.faces[:, ::-1].copy()
        mesh = dataclasses.replace(
            mesh, vertices=vertices, faces=faces, normals=vertex_normals(vertices, faces)
        )
    export_mesh(mesh, folder)
    return folder / "mesh.glb"


# --- exact pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DUCK, CHAIR, SceneSpec(kind="fish", color="red")])
def test_solids_stand_in_the_frame_of_the_export(spec: SceneSpec, tmp_path: Path) -> None:
    solid = exact_solid(spec, 3)
    low, high = bounds(solid)
    np.testing.assert_allclose(low[1], -0.5, atol=2e-3)
    np.testing.assert_allclose((low + high)[[0, 2]], 0.0, atol=2e-3)
    np.testing.assert_allclose((high - low).max(), 1.0, atol=2e-3)
    # Exporting moves the exact mesh by no more than that.
    before = exact_mesh(solid)
    seen = read_glb(_export(solid, tmp_path))
    np.testing.assert_allclose(seen.mesh.vertices, before.vertices, atol=4e-3)


def test_layers_in_any_colors_are_the_renders_in_those_colors() -> None:
    shape = Shape.of(CHAIR)
    layers, silhouettes = render_layers(shape, 1)
    for color, second in (("blue", "white"), ("red", "black")):
        direct = exact_views(shape.in_colors(color, second), 1, AZIMUTHS_DEG)
        mixed = layers @ color_weights([(color, second)])[0].T
        np.testing.assert_allclose(mixed, pool(direct), atol=1e-5)
        np.testing.assert_array_equal(silhouettes, direct[..., 3].reshape(24, -1) > 0.5)
    # White under the brightest light is the only thing that the tracer cuts.
    white = exact_views(shape.in_colors("white", "white"), 1, AZIMUTHS_DEG)
    mixed = layers @ color_weights([("white", "white")])[0].T
    assert np.abs(mixed - pool(white)).max() < 0.05


def test_the_ray_cast_mesh_looks_like_the_tracers_solid(tmp_path: Path) -> None:
    views = render(read_glb(_export(exact_solid(DUCK, 0), tmp_path)), AZIMUTHS_DEG)
    traced = exact_views(DUCK, 0, AZIMUTHS_DEG)
    assert ((views[..., 3] > 0.5) == (traced[..., 3] > 0.5)).mean() > 0.995
    inside = (views[..., 3] > 0.5) & (traced[..., 3] > 0.5)
    # Colours differ where a vertex lies on the other side of an edge between parts.
    difference = np.abs(views - traced)[inside]
    assert np.median(difference) < 0.005
    assert difference.mean() < 0.01


def test_shading_is_darker_below_and_within_range() -> None:
    solid = sphere_solid("gray")
    points = np.array([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]])
    above, below = shaded_colors(solid, points)
    assert (above > below).all()
    assert ((above <= 1) & (below >= 0)).all()


def test_references_are_kept_on_the_disk_and_damage_is_repaired(tmp_path: Path) -> None:
    shape = Shape(kind="cube")
    first = References(tmp_path, variations=1)
    assert not first.is_stored(shape)
    made = first(shape)
    again = References(tmp_path, variations=1)
    assert again.is_stored(shape)
    np.testing.assert_array_equal(again(shape).layers, made.layers)
    (path,) = tmp_path.rglob("*.npz")
    stored = path.read_bytes()
    path.write_bytes(stored[:1000])
    np.testing.assert_array_equal(References(tmp_path, variations=1)(shape).layers, made.layers)
    assert path.read_bytes() == stored
    unkept = References(None, variations=1)
    np.testing.assert_array_equal(unkept(shape).layers, made.layers)


# --- rays and paint --------------------------------------------------------------------------


def test_the_camera_is_that_of_the_tracer() -> None:
    origin, rays = camera_rays(90.0, 0.0)
    np.testing.assert_allclose(origin, [DISTANCE, 0, 0], atol=1e-12)
    half = np.tan(np.radians(FOVY_DEG / 2)) * (1 - 1 / SIDE)
    corner = np.array([-1.0, half, half])  # upper left: up, and toward +Z, the object's front
    np.testing.assert_allclose(rays[0, 0], corner / np.linalg.norm(corner), atol=1e-12)


def _quad_box() -> TexturedMesh:
    """A unit cube whose every face shows the whole texture, v downward."""
    box = trimesh.creation.box()
    vertices = box.vertices[box.faces].reshape(-1, 3)
    normals = np.repeat(box.face_normals, 3, axis=0)
    side = np.stack(
        [vertices[:, 0] + vertices[:, 2] * (np.abs(normals[:, 0]) > 0.5), -vertices[:, 1]], 1
    )
    rows = np.zeros((64, 64, 3), np.uint8)
    rows[:32, :, 0] = 200  # the texture's upper half is red, the lower one blue
    rows[32:, :, 2] = 100
    return TexturedMesh(
        vertices=vertices.astype(np.float32),
        faces=np.arange(len(vertices), dtype=np.int32).reshape(-1, 3),
        normals=normals.astype(np.float32),
        uv=np.clip(side + 0.5, 0, 1).astype(np.float32),
        texture=rows,
    )


def test_textures_are_looked_up_the_right_way_up(tmp_path: Path) -> None:
    mesh = _quad_box().transformed(scale=1.0, offset=LOOK_AT)
    export_glb(mesh, tmp_path / "mesh.glb")
    view = render(read_glb(tmp_path / "mesh.glb"), np.array([0.0]))[0]
    column = view[:, SIDE // 2]
    hit = np.flatnonzero(column[:, 3] > 0.5)
    front = column[hit]
    # From above the top face comes first (its v is constant), then the front face downward.
    assert front[-1, 2] == pytest.approx(100 / 255, abs=0.01)
    assert front[-1, 0] == 0
    reds = front[:, 0] > 0.5
    assert reds.any()
    assert np.flatnonzero(reds).max() < np.flatnonzero(front[:, 2] > 0.3).max()


def test_without_embree_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "embreex.rtcore_scene", None)
    with pytest.raises(Sds3dError, match="pip install embreex"):
        require_embree()


# --- distances -------------------------------------------------------------------------------


def _random_reference(rng: np.random.Generator) -> Reference:
    layers = rng.uniform(size=(3, 24, 10, N_LAYERS)).astype(np.float32)
    return Reference(
        layers=layers,
        gram=layers.swapaxes(-1, -2) @ layers,
        silhouettes=rng.uniform(size=(3, 24, 40)) < 0.5,
    )


@pytest.mark.parametrize("all_azimuths", [False, True])
def test_view_distances_are_the_sums_of_squares_written_out(all_azimuths: bool) -> None:
    rng = np.random.default_rng(0)
    reference = _random_reference(rng)
    weights = color_weights([("red", None), ("blue", "pink")])
    views = rng.uniform(size=(24, 10, 4)).astype(np.float32)
    found = view_distances(reference, weights, views, all_azimuths=all_azimuths)
    renders = np.einsum("rapl,kcl->krapc", reference.layers, weights)
    channel = np.array([1, 1, 1, ALPHA_WEIGHT])
    if all_azimuths:
        difference = renders[:, :, :, None] - views[None, None, None]
        assert found.shape == (2, 3, 24, 24)
    else:
        difference = renders - views[None, None]
    expected = (difference**2 * channel).sum(-1).mean(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_azimuth_accuracy_counts_views_within_thirty_degrees() -> None:
    reference = _random_reference(np.random.default_rng(1))
    weights = color_weights([("green", "white")])
    views = reference.layers[1] @ weights[0].T
    assert azimuth_accuracy(reference, weights, views, AZIMUTHS_DEG) == 1.0
    turned = np.roll(views, 1, axis=0)  # each view is the one 15 degrees before its azimuth
    assert azimuth_accuracy(reference, weights, turned, AZIMUTHS_DEG) == 1.0
    assert azimuth_accuracy(reference, weights, np.roll(views, 2, axis=0), AZIMUTHS_DEG) == 0.0
    # Over all turns four of the 24 references lie within 30 degrees of a view between them.
    shares = [
        azimuth_accuracy(reference, weights, np.roll(views, k, axis=0), BETWEEN_DEG)
        for k in range(24)
    ]
    assert np.mean(shares) == pytest.approx(1 / 6)


def test_silhouette_iou_by_hand() -> None:
    reference = _random_reference(np.random.default_rng(2))
    silhouettes = np.zeros((2, 24, 8), bool)
    silhouettes[0, :, :4] = True
    silhouettes[1, :, 2:6] = True
    seen = np.zeros((24, 8), bool)
    seen[:, :6] = True
    reference = dataclasses.replace(reference, silhouettes=silhouettes)
    np.testing.assert_allclose(silhouette_ious(reference, seen), [4 / 6, 4 / 6])
    np.testing.assert_allclose(silhouette_ious(reference, silhouettes[0]), [1, 2 / 6])
    np.testing.assert_allclose(silhouette_ious(reference, np.zeros((24, 8), bool)), [0, 0])


def test_f_score_by_hand() -> None:
    exact = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    points = np.array([[0.04, 0, 0], [9, 0, 0]])
    # Precision 1/2, recall 1/4.
    assert f_score(points, exact) == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert f_score(exact, exact) == 1.0
    assert f_score(exact + 0.06, exact) == 0.0


# --- whole meshes ----------------------------------------------------------------------------


def test_the_exact_mesh_is_right_in_every_figure(judge: Judge, tmp_path: Path) -> None:
    found = judge.measure(DUCK, _export(exact_solid(DUCK, 0), tmp_path))
    assert found.problem is None
    assert found.valid
    assert found.retrieved
    assert found.kind
    assert found.color
    assert found.composition is None
    assert found.nearest == "a yellow duck"
    assert found.azimuth == 1.0
    assert found.silhouette_iou > 0.97
    assert found.f_score > 0.99
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_exact_composed_mesh_is_told_from_its_distractors(judge: Judge, tmp_path: Path) -> None:
    found = judge.measure(CHAIR, _export(exact_solid(CHAIR, 0), tmp_path))
    assert found.retrieved
    assert found.composition is True
    swapped = dataclasses.replace(CHAIR, color="white", part_color="blue")
    wrong = judge.measure(CHAIR, _export(exact_solid(swapped, 0), tmp_path))
    assert not wrong.retrieved
    assert wrong.composition is False
    assert wrong.kind
    assert wrong.silhouette_iou > 0.97


def test_a_wrong_color_is_wrong_in_color_alone(judge: Judge, tmp_path: Path) -> None:
    green = SceneSpec(kind="duck", color="green")
    found = judge.measure(DUCK, _export(exact_solid(green, 0), tmp_path))
    assert not found.retrieved
    assert found.kind
    assert not found.color
    assert found.azimuth is not None
    assert found.silhouette_iou > 0.97


def test_a_turned_mesh_loses_its_azimuth_and_nothing_aligns_it(
    judge: Judge, tmp_path: Path
) -> None:
    quarter = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    found = judge.measure(DUCK, _export(exact_solid(DUCK, 0), tmp_path, quarter))
    assert found.valid
    assert found.azimuth is not None
    assert found.azimuth < 0.1
    assert found.silhouette_iou < 0.8


def test_a_mesh_with_its_front_behind_keeps_half_of_its_azimuth_at_most(
    judge: Judge, tmp_path: Path
) -> None:
    mirrored = np.diag([1.0, 1.0, -1.0])
    found = judge.measure(DUCK, _export(exact_solid(DUCK, 0), tmp_path, mirrored))
    assert found.valid
    assert found.azimuth is not None
    assert found.azimuth < 0.5


def test_the_baselines_frame_the_figures(judge: Judge) -> None:
    sphere = measure_baseline("sphere", DUCK, 0, 0, judge)
    wrong = measure_baseline("wrong kind", DUCK, 0, 0, judge)
    exact = measure_baseline("exact", DUCK, 0, 0, judge)
    assert sphere.valid
    assert sphere.color
    assert not sphere.kind
    assert not wrong.kind
    assert wrong.color
    assert exact.retrieved
    assert sphere.silhouette_iou < 0.6 < exact.silhouette_iou
    assert sphere.f_score < 0.6 < exact.f_score
    assert sphere.azimuth is not None
    assert sphere.azimuth < 0.5
    assert exact.azimuth is not None
    assert exact.azimuth > 0.9


def test_symmetric_things_have_no_azimuth(judge: Judge) -> None:
    for kind in ("ball", "lamp"):
        assert exact_azimuth_share(judge.references, Shape(kind=kind)) < 0.6, kind
    for kind in ("duck", "mug"):
        assert exact_azimuth_share(judge.references, Shape(kind=kind)) > 0.9, kind


def test_missing_and_broken_files_are_misses(judge: Judge, tmp_path: Path) -> None:
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF" + bytes(100))
    for path in (tmp_path / "none.glb", broken):
        with pytest.raises(UnreadableMesh, match=path.name):
            read_glb(path)
        found = judge.measure(DUCK, path)
        assert {found.valid, found.retrieved, found.kind, found.color} == {False}
        assert found.silhouette_iou == found.f_score == found.azimuth == 0.0
        assert found.problem is not None
    composed = judge.measure(CHAIR, broken)
    assert composed.composition is False
    assert judge.measure(SceneSpec(kind="ball", color="red"), broken).azimuth is None


@pytest.mark.parametrize(
    ("scale", "offset", "problem"),
    [
        (1.1, (0.0, 0.0, 0.0), "longest side"),
        (1.0, (0.0, 0.1, 0.0), "rest"),
        (1.0, (0.1, 0.0, 0.0), "rest"),
    ],
)
def test_a_mesh_outside_the_frame_is_not_valid(
    scale: float, offset: tuple[float, float, float], problem: str, tmp_path: Path
) -> None:
    mesh = normalise(exact_mesh(exact_solid(DUCK, 0)))
    export_glb(mesh.transformed(scale=scale, offset=np.array(offset)), tmp_path / "mesh.glb")
    found = frame_problem(read_glb(tmp_path / "mesh.glb"))
    assert found is not None
    assert problem in found


def test_surface_points_are_the_same_each_time() -> None:
    mesh = trimesh.creation.icosphere()
    np.testing.assert_array_equal(surface_points(mesh), surface_points(mesh))


def test_references_cover_every_kind(judge: Judge) -> None:
    assert all(judge.references(Shape(kind=kind)).silhouettes.any() for kind in KIND_NAMES)
