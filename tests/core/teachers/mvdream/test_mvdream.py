"""MVDream as a teacher of the program: cameras, gradients, groups of views, and who calls it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning
from core.distillation.score.reconstruction import Reconstruction
from core.distillation.score.sds import surrogate_loss
from core.frozen import parameter_sha256
from core.guidance import GuidanceRescale
from core.teachers.mvdream import MVDreamTeacher
from core.teachers.mvdream_unet import VIEWS, JointSelfAttention, camera_matrix
from core.teachers.teacher import (
    LatentTeacher,
    TeacherOptions,
    encode_for,
    noise_shape,
    views_per_object,
)
from nerf.cameras import orbit_c2w
from sds3d import cli, doctor, teachers
from sds3d.agreement import measure_agreement
from sds3d.batch.config import BatchConfig
from sds3d.batch.prompts import parse
from sds3d.errors import ConfigError
from sds3d.generate import Parts
from sds3d.optimize import Optimization, StepClock, optimize
from sds3d.optimize_config import OptimizeConfig, RefineOptions
from sds3d.presets import generate_config, with_teacher
from sds3d.preview import PreviewConfig, draw_views
from sds3d.user_config import config_path
from sds3d.views import in_rings, ring, sample_views

PROMPT = "red car"
SCALE = 3.0
AROUND = torch.tensor([[30.0 + 90 * i, 20.0] for i in range(4)])


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    config_path().parent.mkdir(parents=True)
    config_path().write_text("[teacher]\nimage_size = 16\n")


@pytest.fixture
def load(converted: Path) -> Callable[..., MVDreamTeacher]:
    def load_it(**options: Any) -> MVDreamTeacher:
        return MVDreamTeacher.load(converted, options=TeacherOptions(image_size=16, **options))

    return load_it


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- cameras ---------------------------------------------------------------------------------


def authors_camera(azimuth_deg: float, elevation_deg: float, distance: float) -> np.ndarray:
    """A look-at matrix in a world with +Z up, its translation then made a unit vector."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    around = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * np.cos(elevation)
    position = distance * (around + np.array([0.0, 0.0, np.sin(elevation)]))
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, up, -forward, position], axis=1)
    c2w[:3, 3] /= np.linalg.norm(c2w[:3, 3])
    return c2w.reshape(16)


def test_a_camera_is_the_authors_matrix_row_by_row() -> None:
    angles = [(0.0, 0.0), (90.0, 15.0), (200.0, -10.0), (359.0, 60.0)]
    expected = np.stack([authors_camera(*pair, distance=2.5) for pair in angles])
    found = camera_matrix(torch.tensor(angles, dtype=torch.float64)).numpy()
    assert np.abs(found - expected).max() < 1e-12


def test_the_programs_own_poses_are_the_same_cameras_in_another_world() -> None:
    camera = torch.tensor([[0.0, 0.0], [100.0, 20.0], [250.0, -30.0]], dtype=torch.float64)
    c2w = orbit_c2w(camera[:, 0], camera[:, 1], 2.9)
    turn = torch.zeros(4, 4, dtype=torch.float64)  # (x, y, z) -> (z, x, y)
    turn[0, 2] = turn[1, 0] = turn[2, 1] = turn[3, 3] = 1
    turned = turn @ c2w
    turned[:, :3, 3] /= turned[:, :3, 3].norm(dim=1, keepdim=True)
    assert torch.linalg.det(turn) == 1
    assert (camera_matrix(camera).view(-1, 4, 4) - turned).abs().max() < 1e-12


def test_rings_stand_evenly_around_at_one_elevation_and_everywhere_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    views = sample_views(8, (-10.0, 60.0), generator)
    rings = in_rings(views, 4)
    for some, first in ((slice(0, 4), 0), (slice(4, 8), 4)):
        turns = (rings.azimuth_deg[some] - rings.azimuth_deg[first]) % 360
        assert torch.allclose(turns, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-3)
        assert (rings.elevation_deg[some] == views.elevation_deg[first]).all()
        assert (rings.distance[some] == views.distance[first]).all()
    assert rings.elevation_deg[0] != rings.elevation_deg[4]
    # Two rings of one step stand between each other.
    assert 20 < (rings.azimuth_deg[4] - rings.azimuth_deg[0]) % 90 < 70
    many = [in_rings(sample_views(4, (0.0, 30.0), generator), 4).azimuth_deg for _ in range(2000)]
    counts = torch.histc(torch.cat(many), bins=12, min=0, max=360)
    assert (counts / 8000 - 1 / 12).abs().max() < 0.02
    assert in_rings(views, 1) is views
    with pytest.raises(ValueError, match="8 cameras are no whole number of rings of 3"):
        in_rings(views, 3)


# --- the teacher -----------------------------------------------------------------------------


def test_the_gradient_to_the_images_agrees_with_finite_differences(
    load: Callable[..., MVDreamTeacher],
) -> None:
    teacher = load(dtype="float64")
    before = parameter_sha256(teacher.module)
    x = normal(4, 3, 16, 16, seed=1, dtype=torch.float64).clamp(-1, 1).requires_grad_()
    direction = normal(*x.shape, seed=2, dtype=torch.float64)
    t = torch.full((4,), 0.4, dtype=torch.float64)
    cond = teacher.encode(PROMPT).with_camera(AROUND.double())
    guided = ClassifierFreeGuidance(teacher, SCALE)

    def central(function: Callable[[Tensor], Tensor], h: float) -> float:
        with torch.no_grad():
            ahead, behind = function(x + h * direction), function(x - h * direction)
        return float(ahead - behind) / (2 * h)

    # The recipe's gradient, through the autoencoder to the four images.
    z = encode_for(teacher, x)
    eps = normal(*z.shape, seed=4, dtype=torch.float64)
    recipe = Reconstruction(guidance=guided, rescale=0.5, views=teacher.views_per_object)
    score = recipe.gradient_at(z.detach(), t, eps, cond)
    (gradient,) = torch.autograd.grad(surrogate_loss(z, score), x)
    expected = central(lambda images: (score * encode_for(teacher, images)).sum(), 1e-4)
    assert abs(expected) > 1e-3
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)

    # And through the network: what is predicted of one view depends on the pixels of another.
    def through(images: Tensor) -> Tensor:
        return guided(encode_for(teacher, images), t, cond).x0[0].square().sum()

    (gradient,) = torch.autograd.grad(through(x), x)
    assert (gradient.abs().amax((1, 2, 3)) > 1e-6).all()
    found = float((gradient * direction).sum())
    assert found == pytest.approx(central(through, 1e-5), rel=1e-6)
    assert parameter_sha256(teacher.module) == before
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


@torch.no_grad()
def test_attention_in_slices_still_reaches_over_the_views(
    load: Callable[..., MVDreamTeacher],
) -> None:
    plain, sliced = load(), load(attention_slicing=True)
    joint = [p for p in sliced.unet.attn_processors.values() if isinstance(p, JointSelfAttention)]
    assert joint
    assert all("Sliced" in type(p.processor).__name__ for p in joint)
    x, t = normal(4, *noise_shape(plain)), torch.full((4,), 0.5)
    cond = plain.encode(PROMPT).with_camera(AROUND)
    assert torch.allclose(sliced(x, t, cond).eps, plain(x, t, cond).eps, atol=1e-5)


@torch.no_grad()
def test_guidance_without_the_camera_contrasts_with_pictures_by_themselves(
    load: Callable[..., MVDreamTeacher],
) -> None:
    teacher = load()
    x, t = normal(4, *noise_shape(teacher)), torch.full((4,), 0.5)
    cond = teacher.encode(PROMPT)
    assert cond.uncond is not None
    both = ClassifierFreeGuidance(teacher, SCALE).parts(x, t, cond.with_camera(AROUND))
    dropped = cond.with_camera(AROUND, drop_in_uncond=True)
    one = ClassifierFreeGuidance(teacher, SCALE).parts(x, t, dropped)
    assert torch.allclose(one.conditional.eps, both.conditional.eps, atol=1e-5)
    alone = [teacher(x[[i]], t[[i]], replace(cond.uncond, uncond=None)).eps for i in range(VIEWS)]
    assert torch.allclose(one.unconditional.eps, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(both.unconditional.eps, torch.cat(alone), atol=1e-2)


def test_it_says_how_many_views_belong_together(load: Callable[..., MVDreamTeacher]) -> None:
    teacher = load()
    assert views_per_object(teacher) == VIEWS == 4
    assert isinstance(teacher, LatentTeacher)
    other: Any = SimpleNamespace()
    assert views_per_object(other) == 1


# --- the program -----------------------------------------------------------------------------


def test_a_folder_and_a_users_name_are_teachers(converted: Path) -> None:
    config_path().write_text(f"[teachers]\nmvdream = {json.dumps(str(converted))}\n")
    teacher = teachers.load_teacher("mvdream", "cpu")
    assert isinstance(teacher, MVDreamTeacher)
    assert teacher.image_size == 64  # 32 latents a side; this autoencoder halves once
    assert teacher.weights_sha256 == teachers.look_at(str(converted)).sha256()


def test_the_doctor_knows_it(converted: Path, published: Path) -> None:
    findings = doctor.teacher_findings(str(converted))
    assert all(finding.status == "ok" for finding in findings)
    texts = {finding.name: finding.text for finding in findings}
    assert texts["teacher unet"].startswith("MultiViewUNet, ")
    assert "while the prompt is read" in texts["teacher memory"]
    (refused,) = doctor.teacher_findings(str(published))
    assert refused.status == "problem"
    assert f"core.teachers.convert_mvdream {published}" in refused.text


def test_the_preview_shows_the_sides_it_draws_together(converted: Path) -> None:
    teacher: Any = teachers.load_teacher(str(converted), "cpu")
    asked: list[Conditioning] = []
    call = MVDreamTeacher.__call__

    class Watched(MVDreamTeacher):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Any:
            assert cond is not None
            asked.append(cond)
            assert (x_t[0] != x_t[1]).any()
            return call(self, x_t, t, cond)

    teacher.__class__ = Watched
    frames = draw_views(teacher, PreviewConfig(prompt=PROMPT, sample_steps=1))
    assert frames.shape == (4, 16, 16, 3)
    assert asked[0].camera is not None
    expected = ring(4, 15.0).camera
    assert torch.equal(asked[0].camera, expected.repeat(2, 1))  # with the negative prompt's


def options(**changes: Any) -> OptimizeConfig:
    """The recipe at tiny size."""
    recipe: dict[str, Any] = {
        "steps": 3,
        "method": "reconstruction",
        "guidance_rescale": 0.5,
        "camera_guidance": False,
        "views_per_step": 8,
        "resolutions": (8,),
        "resolution_milestones": (),
    }
    return OptimizeConfig(**recipe | changes)


def make_loop(folder: Path, **changes: Any) -> Optimization:
    teacher = teachers.load_teacher(str(folder), "cpu")
    config = generate_config(prompt=PROMPT, device="cpu", optimize=options(**changes))
    return Optimization(config, teacher)


def test_the_loop_shows_it_rings_of_views_with_one_time_and_a_noise_each(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Tensor, Tensor, Conditioning]] = []
    call = MVDreamTeacher.__call__

    def watch(
        self: MVDreamTeacher, x_t: Tensor, t: Tensor, cond: Conditioning | None = None
    ) -> Any:
        assert cond is not None
        asked.append((x_t, t, cond))
        return call(self, x_t, t, cond)

    monkeypatch.setattr(MVDreamTeacher, "__call__", watch)
    loop = make_loop(converted)
    before = [p.detach().clone() for p in loop.particles[0].parameters()]
    assert loop.advance(StepClock()).finite
    after = loop.particles[0].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    ((x_t, t, cond),) = asked  # one call: the prompt's and the negative prompt's eight views
    assert cond.camera is not None
    azimuth, elevation = cond.camera.view(2, 2, 4, 2).unbind(3)
    turns = (azimuth - azimuth[..., :1]) % 360
    assert torch.allclose(turns, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-3)
    assert (elevation == elevation[..., :1]).all()
    assert torch.equal(azimuth[0], azimuth[1])
    groups = t.view(2, 2, 4)
    assert (groups == groups[..., :1]).all()
    assert groups[0, 0, 0] != groups[0, 1, 0]
    noises = x_t[:8].flatten(1)
    assert (torch.cdist(noises, noises) + 9 * torch.eye(8)).min() > 1


def test_its_agreement_is_measured_with_one_time_for_all_views(converted: Path) -> None:
    loop = make_loop(converted)
    seen: list[Tensor] = []
    teacher: Any = loop.teacher
    network = teacher.unet
    network.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    first, second = measure_agreement(loop), measure_agreement(loop)
    assert first is not None
    assert first == second
    assert torch.equal(seen[0], torch.full((4,), 0.5 * 999))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views_per_step": 2}, "--views-per-step is 2: this teacher judges 4 views"),
        ({"views_per_step": 6}, "give 4 or a multiple of it"),
        (
            {"views_per_step": 4, "refine": RefineOptions(refine_steps=1)},
            "--refine-views-per-step is 1: this teacher judges 4 views",
        ),
        ({"views_per_step": 4, "target": "image"}, "give --no-camera-conditioning"),
    ],
)
def test_views_that_do_not_belong_together_are_refused_in_one_line(
    changes: dict[str, Any], message: str, converted: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_loop(converted, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_and_its_method_are_one_flag_each(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real teacher and loop, by the command line, with numbers of views that it can judge."""

    def write_files(*_: Any, **__: Any) -> dict[str, Any]:
        return {"mesh": {}, "iso_iou": 1.0}

    parts = Parts(load_teacher=teachers.load_teacher, optimize=optimize, write_files=write_files)
    words = ["generate", PROMPT, "--teacher", str(converted), "--steps", "1", "--device", "cpu"]
    words += ["--resolutions", "8", "8", "--step-size", "0.2", "--occupancy-resolution", "8"]
    words += ["--n-levels", "2", "--log2-table-size", "8", "--hidden-dim", "8"]
    words += ["--method", "reconstruction", "--out", str(tmp_path)]
    assert cli.main(words, parts=parts) == 0
    result = Path(capsys.readouterr().out.strip()) / "result.json"
    made = json.loads(result.read_bytes())["config"]["optimize"]
    assert (made["views_per_step"], made["guidance_rescale"]) == (4, 0.5)
    assert cli.main([*words, "--views_per_step=2"], parts=parts) == 2
    assert "give 4 or a multiple of it" in capsys.readouterr().err


def test_views_are_rounded_up_to_those_it_judges_together(converted: Path) -> None:
    name, plain = str(converted), OptimizeConfig(views_per_step=5)
    assert with_teacher(plain, name) == replace(plain, views_per_step=8)
    assert with_teacher(plain, name, {"views_per_step"}) == plain
    for same in (replace(plain, camera_conditioning=False), replace(plain, views_per_step=8)):
        assert with_teacher(same, name) == same
    for other in ("toybox", "toybox-guided", "nothing", "some/model"):
        assert with_teacher(plain, other) == plain
    second = replace(plain, refine=RefineOptions(refine_steps=1, refine_views_per_step=1))
    assert with_teacher(second, name).refine.refine_views_per_step == 4
    assert with_teacher(second, name, {"refine_views_per_step"}).refine == second.refine
    other = replace(second, refine=replace(second.refine, refine_teacher=name))
    assert with_teacher(other, "toybox").refine.refine_views_per_step == 4
    assert with_teacher(other, "toybox").views_per_step == 5


def test_a_batch_takes_it_by_its_name_alone(converted: Path) -> None:
    config = BatchConfig(prompts="-", teacher=str(converted), steps=3)
    (line,) = parse(PROMPT.encode(), config, as_json=False).lines
    assert (line.config.optimize.views_per_step, line.config.optimize.steps) == (4, 3)


def test_without_cameras_it_is_a_teacher_of_single_pictures(converted: Path) -> None:
    loop = make_loop(converted, views_per_step=1, target="image", camera_conditioning=False)
    assert loop.supervision.views_per_object == 1
    assert loop.advance(StepClock()).finite


def test_the_rescale_of_other_methods_keeps_the_views_of_one_object_alike(converted: Path) -> None:
    loop = make_loop(converted, method="sds")
    guidance = loop.supervision.guidance(SCALE, loop.particles[0].views(torch.Generator()))
    assert isinstance(guidance, GuidanceRescale)
    assert guidance.views == 4
    recipe = make_loop(converted).supervision
    views = loop.particles[0].views(torch.Generator())
    distillation = recipe.distillation(views)
    assert isinstance(distillation, Reconstruction)
    assert distillation.views == 4
