"""Fields whose colours are a teacher's latents: what is judged, what is read, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule, diffuse
from core.teachers.autoencoder import Autoencoder
from core.teachers.stable_diffusion import LATENTS_TO_RGB, StableDiffusionTeacher
from sds3d import teachers
from sds3d.config import GenerateConfig, MeshConfig
from sds3d.errors import ConfigError
from sds3d.latent_representation import LatentFieldRepresentation, RgbField
from sds3d.optimize import Optimization, StepClock
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.presets import generate_config
from sds3d.user_config import config_path
from sds3d.write_mesh import write_mesh

MATRIX = torch.tensor(LATENTS_TO_RGB)
RED = torch.tensor([0.75, 0.35, 0.4])


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    config_path().parent.mkdir(parents=True)
    config_path().write_text("[teacher]\nimage_size = 16\n")


def make_config(**changes: Any) -> GenerateConfig:
    options: dict[str, Any] = {
        "steps": 4,
        "latent": True,
        "resolutions": (8,),
        "resolution_milestones": (),
        "field": FieldOptions(n_levels=3, log2_table_size=10, finest_resolution=16, hidden_dim=16),
    }
    mesh = MeshConfig(mesh_resolution=24, max_faces=400, texture_size=0, formats=("obj",))
    optimize = OptimizeConfig(**options | changes)
    return generate_config(prompt="a red car", device="cpu", optimize=optimize, mesh=mesh)


def latent_particle(loop: Optimization) -> LatentFieldRepresentation:
    (particle,) = loop.particles
    assert isinstance(particle, LatentFieldRepresentation)
    return particle


class Knows:
    """A teacher of latents [4, 8, 8] that predicts one clean image for everything."""

    image_size = 16
    latent_shape = (4, 8, 8)
    latents_to_rgb = LATENTS_TO_RGB
    schedule = FlowSchedule()
    weights_sha256 = "0" * 64
    device = torch.device("cpu")
    module = torch.nn.Module()

    def __init__(self) -> None:
        self.image = ((2 * RED - 1) @ torch.linalg.pinv(MATRIX))[:, None, None].expand(4, 8, 8)
        self.seen: list[Tensor] = []

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        text = torch.ones(1, 1, 1)
        return Conditioning(text=text, uncond=Conditioning(text=0 * text))

    def encode_image(self, x: Tensor) -> Tensor:
        raise AssertionError("a step encodes no image")

    def decode_latents(self, latents: Tensor) -> Tensor:
        raise AssertionError("a step decodes no latents")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.seen.append(x_t)
        return Prediction.from_x0(self.image.expand_as(x_t), x_t, t, self.schedule)


def test_the_teacher_is_shown_the_rendered_latents_themselves() -> None:
    teacher: Any = Knows()
    loop = Optimization(make_config(), teacher)
    particle: Any = latent_particle(loop)
    shown: list[Any] = []
    show = particle.show

    def watch(*given: Any) -> Any:
        shown.append(show(*given))
        return shown[-1]

    particle.show = watch
    noises: list[Tensor] = []
    gradient = loop.supervision.gradient

    def watched(x: Tensor, t: Tensor, *more: Any) -> Tensor:
        before = len(teacher.seen)
        found = gradient(x, t, *more)
        # What was denoised is the rendered latents with noise, and nothing else.
        sigma = teacher.schedule.sigma(t)[:, None, None, None]
        clean = diffuse(teacher.schedule, x, torch.zeros_like(x), t)
        noises.append((teacher.seen[before][: len(x)] - clean) / sigma)
        assert torch.equal(x, shown[0].images)
        # Every view is pulled straight toward the teacher's image.
        assert torch.allclose(found, x - teacher.image, atol=1e-5)
        return found

    object.__setattr__(loop.supervision, "gradient", watched)
    assert loop.advance(StepClock()).finite
    assert shown[0].latent
    assert shown[0].images.shape == (2, 4, 8, 8)
    assert abs(float(noises[0].std()) - 1) < 0.2


def test_a_field_of_latents_becomes_what_the_teacher_knows_and_reads_as_its_colour() -> None:
    teacher: Any = Knows()
    rates = {"encoding_learning_rate": 0.05, "mlp_learning_rate": 0.1}
    config = make_config(steps=40, guidance_scale=1.0, **rates)
    loop = Optimization(config, teacher)
    particle = latent_particle(loop)
    inside = 0.5 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 0.25

    def distances() -> tuple[float, float]:
        """Of the object's latents and of its colour from the teacher's."""
        with torch.no_grad():
            latents, rgb = particle.field(inside)[1], particle.colored(inside)[1]
        wanted = teacher.image[:, 0, 0]
        return float((latents - wanted).norm(dim=1).mean()), float((rgb - RED).abs().mean())

    before = distances()
    for _ in range(40):
        assert loop.advance(StepClock()).finite
    after = distances()
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 2
    pictures = particle.pictures(particle.around(2, 20.0), 16, 0.0)
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(particle.reading, MATRIX)  # known, and not refined here


def test_the_mesh_has_the_colours_that_the_latents_are_read_as(tmp_path: Path) -> None:
    import trimesh

    teacher: Any = Knows()
    config = make_config()
    particle = latent_particle(Optimization(config, teacher))
    with torch.no_grad():
        particle.field.head.weight[1:] = 0
        particle.field.head.bias[1:] = (2 * RED - 1) @ torch.linalg.pinv(MATRIX)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    density, colours = particle.colored(points)
    assert torch.allclose(colours, RED.expand(50, 3), atol=1e-5)
    assert torch.equal(density, particle.field.density(points))
    write_mesh(particle, config, tmp_path, lambda _: None)
    mesh: Any = trimesh.load(tmp_path / "mesh.obj", force="mesh", process=False)
    found = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    assert len(found) > 50
    assert np.abs(found - RED.numpy()).max() < 0.01


def test_plain_backgrounds_are_read_as_their_colours() -> None:
    teacher: Any = Knows()
    particle = latent_particle(Optimization(make_config(), teacher))
    rgb = torch.rand(9, 3, generator=torch.Generator().manual_seed(1))
    latents = (2 * rgb - 1) @ particle.of_rgb
    assert torch.allclose(0.5 * (1 + latents @ particle.reading), rgb, atol=1e-5)


def test_normals_and_their_gradients_are_the_fields_own() -> None:
    teacher: Any = Knows()
    particle = latent_particle(Optimization(make_config(), teacher))
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    density, rgb, normals = RgbField(particle.field, particle.reading).with_normals(points)
    expected = particle.field.with_normals(points)
    assert torch.equal(density, expected[0])
    assert torch.equal(normals, expected[2])
    assert torch.allclose(rgb, particle.colored(points)[1])


@pytest.fixture
def load(tiny_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda name: teachers.load_teacher(str(tiny_folder(name)), "cpu")


def test_the_last_steps_judge_pictures_and_learn_to_read(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Tensor] = []
    encode = Autoencoder.encode

    def watch(self: Autoencoder, x: Tensor) -> Tensor:
        encoded.append(x)
        return encode(self, x)

    monkeypatch.setattr(Autoencoder, "encode", watch)
    teacher = load("sd-eps")
    loop = Optimization(make_config(rgb_refinement=0.5, orientation_weight=0.1), teacher)
    particle = latent_particle(loop)
    for _ in range(2):
        assert loop.advance(StepClock()).finite
    assert not encoded
    assert torch.equal(particle.reading, MATRIX)
    latent_stage = loop.tensors(), loop.meta()
    for _ in range(2):
        assert loop.advance(StepClock()).finite
    assert [x.shape for x in encoded] == [(2, 3, 16, 16)] * 2
    assert not torch.equal(particle.reading, MATRIX)

    # A run that goes on from between the stages makes the same bits.
    again = Optimization(make_config(rgb_refinement=0.5, orientation_weight=0.1), teacher)
    again.load(*latent_stage)
    for _ in range(2):
        again.advance(StepClock())
    found, expected = again.tensors(), loop.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_extra_steps_of_an_unrefined_run_stay_in_latents(load: Callable[[str], Any]) -> None:
    loop = Optimization(make_config(steps=1, extra_steps=1), load("sd-eps"))
    particle = latent_particle(loop)
    views = particle.views(torch.Generator())
    assert particle.show(views, 1.0, torch.Generator()).latent


def test_a_teacher_without_such_latents_is_refused_in_one_line(
    load: Callable[[str], Any],
) -> None:
    for name, message in (
        ("if", "judges pixels"),
        ("sdxl", "is not known here"),
        ("sd3", "is not known here"),
    ):
        with pytest.raises(ConfigError, match="--latent is True") as caught:
            Optimization(make_config(), load(name))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert StableDiffusionTeacher.latents_to_rgb is LATENTS_TO_RGB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": False, "rgb_refinement": 0.2}, "--rgb-refinement is 0.2: give --latent"),
        ({"rgb_refinement": 1.5}, "--rgb-refinement is 1.5"),
        ({"target": "image"}, "--latent is True: give --target mesh"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**changes)
    assert message in str(caught.value)
