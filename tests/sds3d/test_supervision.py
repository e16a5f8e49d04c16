"""Options to methods: each name is its method, each option matters, and the default is SDS."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.denoiser import ClassifierFreeGuidance, Conditioning, PerpNegGuidance
from core.distillation.score.csd import CSD
from core.distillation.score.hifa import HiFA
from core.distillation.score.ism import ISM
from core.distillation.score.nfsd import NFSD, NFSD_NEGATIVE_PROMPT
from core.distillation.score.reconstruction import Reconstruction
from core.distillation.score.sdi import SDI
from core.distillation.score.sds import SDS, surrogate_loss
from core.distillation.score.sjc import SJC
from core.guidance import GuidanceRescale, Unconditional
from core.prediction import Prediction
from core.schedule import FlowSchedule, per_sample
from core.teachers.teacher import encode_for
from sds3d import supervision as supervision_module
from sds3d.config import GenerateConfig
from sds3d.config_json import from_dict, to_dict
from sds3d.errors import ConfigError
from sds3d.events import Event, Warning
from sds3d.optimize import Teacher, optimize, sample_timesteps
from sds3d.optimize_config import FieldOptions, OptimizeConfig, RefineOptions
from sds3d.runs import CheckpointFile
from sds3d.supervision import supervise
from sds3d.view_prompts import view_texts
from sds3d.views import Views, ring

SIZE = 12
METHODS = ("sds", "sjc", "csd", "ism", "sdi", "nfsd", "reconstruction", "hifa", "cds", "vsd")


def embedding(text: str) -> Tensor:
    """Another [1, 3] for every text; 0 for none."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor([[byte / 255 - 0.5 for byte in digest[:3]]]) * bool(text)


class Learner:
    """A teacher's learning twin that has learned nothing: of one colour, whatever is asked."""

    def __init__(self, teacher: "GaussianTeacher") -> None:
        self.teacher = teacher
        self.schedule = teacher.schedule
        self.trainable = {"colour": nn.Parameter(torch.full((1, 3, 1, 1), 0.1))}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        self.teacher.cameras.append(cond.camera)
        x0 = self.trainable["colour"].expand_as(x_t)
        return Prediction.from_x0(x0, x_t, t, self.schedule)


@dataclass
class GaussianTeacher:
    """The exact denoiser of colours about a mean that text and camera choose."""

    image_size: int = SIZE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    deaf: bool = False
    takes_camera: bool = True
    prompts: list[str] = field(default_factory=list)
    cameras: list[Tensor | None] = field(default_factory=list)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        self.prompts += [*prompts, negative_prompt]
        text = torch.stack([embedding("deaf" if self.deaf else prompt) for prompt in prompts])
        uncond = embedding(negative_prompt).expand(len(prompts), 1, 3)
        return Conditioning(text=text, uncond=Conditioning(text=uncond))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        assert cond is not None
        assert cond.text is not None
        assert len(cond.text) == len(x_t)
        self.cameras.append(cond.camera)
        mean = cond.text[:, 0, :, None, None]
        if cond.camera is not None:
            assert len(cond.camera) == len(x_t)
            mean = mean + torch.deg2rad(cond.camera[:, 0]).cos()[:, None, None, None] / 4
        alpha, sigma = per_sample(1 - t, x_t), per_sample(t, x_t)
        gain = alpha * 0.2 / (alpha.square() * 0.2 + sigma.square())
        return Prediction.from_x0(mean + gain * (x_t - alpha * mean), x_t, t, self.schedule)

    def adapt(self, rank: int, generator: torch.Generator) -> Learner:
        return Learner(self)


def options(**changed: Any) -> OptimizeConfig:
    if changed.get("method") == "reconstruction":
        changed = {"guidance_rescale": 0.5, **changed}
    # The camera in both halves and a window that these tests know.
    fixed = {"camera_guidance": False, "timestep_max": (0.98, 0.48), "timestep_min": (0.4, 0.1)}
    return OptimizeConfig(**{**fixed, **changed})


VIEWS: Views = ring(3, 20.0)
X = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.3, 0.5, 0.7])


def gradient(teacher: Teacher | None = None, negative: str = "", **changed: Any) -> Tensor:
    supervision = supervise(options(**changed), teacher or GaussianTeacher(), "a mug", negative)
    return supervision.gradient(X, T, VIEWS, torch.Generator().manual_seed(2))


def asked(prompt: str = "a mug", negative: str = "") -> Conditioning:
    return GaussianTeacher().encode(prompt, negative).with_camera(VIEWS.camera)


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(2)


# --- methods ---------------------------------------------------------------------------------


def test_the_default_is_guided_sds_to_the_bit() -> None:
    expected = SDS(ClassifierFreeGuidance(GaussianTeacher(), 4.0)).gradient(
        X, T, asked(), generator=noise()
    )
    assert torch.equal(gradient(), expected)


def test_each_name_is_another_method() -> None:
    gradients = {name: gradient(method=name) for name in METHODS}
    for name, found in gradients.items():
        assert bool(found.isfinite().all()), name
        assert found.norm() > 0.1, name
        assert not found.requires_grad, name
        same = [other for other in METHODS if torch.allclose(gradients[other], found, rtol=1e-3)]
        assert same == [name]


def test_names_are_the_methods_they_say() -> None:
    teacher = GaussianTeacher()
    guided = ClassifierFreeGuidance(teacher, 7.5)
    for name, rule in (
        ("csd", CSD(guided)),
        # In this project's scale the authors' opposite of s is 2 - s.
        ("sdi", SDI(denoiser=guided, inverter=ClassifierFreeGuidance(teacher, -5.5))),
        # It inverts without the prompt, whatever the guidance.
        ("ism", ISM(denoiser=guided, inverter=Unconditional(teacher), inversion_steps=10)),
        # Brought back once, and over all views of the object.
        ("reconstruction", Reconstruction(guidance=guided, rescale=0.5, views=len(X))),
        ("sjc", SJC(guided, 4)),
        ("hifa", HiFA(denoiser=guided, image_weight=0.1, steps=10)),
    ):
        found = gradient(method=name, guidance_scale=7.5)
        assert torch.equal(found, rule.gradient(X, T, asked(), noise()))


@pytest.mark.parametrize("negative", ["", "a ghost"])
def test_nfsd_contrasts_with_nothing_and_flees_the_negative_prompt(negative: str) -> None:
    teacher = GaussianTeacher()
    found = gradient(teacher, negative, method="nfsd")
    wanted = negative or NFSD_NEGATIVE_PROMPT
    assert wanted in teacher.prompts
    away = replace(asked(wanted), uncond=None)
    rule = NFSD(guidance=ClassifierFreeGuidance(teacher, 4.0), denoiser=teacher, negative=away)
    assert torch.equal(found, rule.gradient(X, T, asked(), noise()))


def test_what_nfsd_flees_has_a_camera_only_where_nothing_has_one() -> None:
    """Guided to the camera, the other half has none: a camera there would be pushed away from."""
    teacher = GaussianTeacher()
    found = gradient(teacher, method="nfsd", camera_guidance=True)
    assert [camera is None for camera in teacher.cameras] == [False, True, True]
    cond = teacher.encode("a mug").with_camera(VIEWS.camera, drop_in_uncond=True)
    away = replace(teacher.encode(NFSD_NEGATIVE_PROMPT), uncond=None)
    rule = NFSD(guidance=ClassifierFreeGuidance(teacher, 4.0), denoiser=teacher, negative=away)
    assert torch.equal(found, rule.gradient(X, T, cond, noise()))


def test_sdi_inverts_with_perp_neg_where_it_is_guided_with_it() -> None:
    """threestudio's sdi.yaml: 7.5 and -7.5, both uncond + s (...) there."""
    teacher = GaussianTeacher()
    wish = {"method": "sdi", "guidance_scale": 7.5, "view_prompts": "interpolated"}
    supervision = supervise(options(**wish, perp_neg=True), teacher, "a mug", "")
    assert supervision.view_prompts is not None
    conds, weights = supervision.view_prompts.negatives(VIEWS)
    negatives = [cond.with_camera(VIEWS.camera) for cond in conds]
    forth, back = (PerpNegGuidance(teacher, s, negatives, weights) for s in (7.5, -7.5))
    cond = supervision.view_prompts.at(VIEWS).with_camera(VIEWS.camera)
    expected = SDI(denoiser=forth, inverter=back).gradient(X, T, cond, noise())
    assert torch.equal(supervision.gradient(X, T, VIEWS, noise()), expected)


def test_cds_keeps_one_noise_for_each_seed() -> None:
    def of(seed: int, draw: int) -> Tensor:
        asked_of = supervise(options(method="cds"), GaussianTeacher(), "a mug", "", seed=seed)
        return asked_of.gradient(X, T, VIEWS, torch.Generator().manual_seed(draw))

    assert torch.equal(of(3, 0), of(3, 1))
    assert not torch.allclose(of(3, 0), of(4, 0), rtol=1e-3)


@pytest.mark.parametrize(("method", "passes"), [("sds", 1), ("sjc", 4), ("cds", 2)])
def test_at_scale_1_the_other_half_is_not_asked(method: str, passes: int) -> None:
    teacher = GaussianTeacher()
    found = gradient(teacher, method=method, guidance_scale=1.0, camera_guidance=True)
    assert len(teacher.cameras) == passes
    assert all(camera is not None for camera in teacher.cameras)
    close = gradient(method=method, guidance_scale=1.0 + 1e-6, camera_guidance=True)
    torch.testing.assert_close(found, close, rtol=1e-4, atol=1e-4)


@dataclass
class LatentGaussian(GaussianTeacher):
    """Of latents of half the side, by an encoder that is not linear."""

    latent_shape: tuple[int, int, int] = (3, SIZE // 2, SIZE // 2)
    weights_sha256: str = "c" * 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    module: nn.Module = field(default_factory=nn.Identity)

    def encode_image(self, x: Tensor) -> Tensor:
        return torch.tanh(F.avg_pool2d(x, 2))

    def decode_latents(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=2.0)


def of_hifa(image_weight: float, **changed: Any) -> Tensor:
    """The gradient [V, 3, H, W] that reaches the images in the loop."""
    chosen = options(method="hifa", image_weight=image_weight, **changed)
    supervision = supervise(chosen, LatentGaussian(), "a mug", "")
    x = X.clone().requires_grad_()
    judged = supervision.judged(x)
    direction = supervision.gradient(judged.detach(), T, VIEWS, noise())
    loss = surrogate_loss(judged, direction) / judged[0].numel() / len(judged)
    return torch.autograd.grad(loss, [x])[0]


def test_hifa_compares_the_pictures_of_a_latent_teacher_too() -> None:
    """Without the picture it is the loop's way of latents; with it, the picture's part is added."""
    teacher = LatentGaussian()
    assert supervise(options(method="hifa", image_weight=0.0), teacher, "a", "").judged(
        X
    ).shape == (3, *teacher.latent_shape)
    of_latents = of_hifa(0.0)
    torch.testing.assert_close(of_hifa(1e-9), of_latents)
    z = encode_for(teacher, X)
    guided = ClassifierFreeGuidance(teacher, 4.0)
    rule = HiFA(denoiser=guided, image_weight=0.0, steps=10)
    z_hat = z - rule.gradient(z, T, asked(), noise())
    of_pixels = 0.3 * (X - teacher.decode_latents(z_hat)) / z[0].numel() / len(z)
    torch.testing.assert_close(of_hifa(0.3) - of_latents, of_pixels)
    # Where latents are rendered there is no picture to compare.
    assert torch.equal(of_hifa(0.3, latent=True), of_latents)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("sjc", {"perturbations": 2}),
        ("ism", {"timestep_interval": 0.1}),
        ("ism", {"ode_steps": 3}),
        ("sdi", {"ode_steps": 3}),
        ("sdi", {"inversion_eta": 0.0}),
        ("hifa", {"ode_steps": 3}),
        ("cds", {"timestep_interval": 0.1}),
        ("reconstruction", {"guidance_rescale": 0.9}),
        *[(method, {"guidance_rescale": 0.7}) for method in METHODS if method != "reconstruction"],
        *[(method, {"guidance_scale": 9.0}) for method in METHODS],
        *[(m, {"loss_weighting": "eps"}) for m in METHODS if m != "reconstruction"],
        *[(m, {"loss_weighting": "sigma2"}) for m in METHODS if m != "reconstruction"],
        *[(method, {"view_prompts": "interpolated"}) for method in METHODS],
        # In differences of two prompts this teacher's camera cancels.
        *[
            (method, {"camera_conditioning": False})
            for method in METHODS
            if method not in ("csd", "nfsd")
        ],
    ],
)
def test_each_option_changes_its_method(method: str, changed: dict[str, Any]) -> None:
    before, after = gradient(method=method), gradient(method=method, **changed)
    assert not torch.allclose(before, after, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_perp_neg_changes_every_method_that_is_guided(method: str) -> None:
    before = gradient(method=method, view_prompts="interpolated")
    after = gradient(method=method, view_prompts="interpolated", perp_neg=True)
    assert not torch.allclose(before, after, rtol=1e-3, atol=1e-5)


# --- views -----------------------------------------------------------------------------------


def test_each_view_gets_its_prompt_and_its_camera() -> None:
    """A ring of three looks from the front and, twice, from between side and back."""
    conds = [
        asked(view_texts("a mug")[index]).select([view]) for view, index in enumerate((0, 1, 1))
    ]
    guided = ClassifierFreeGuidance(GaussianTeacher(), 4.0)
    found = gradient(view_prompts="discrete")
    eps = torch.randn(X.shape, generator=noise())
    for view, cond in enumerate(conds):
        one = slice(view, view + 1)
        expected = SDS(guided).gradient_at(X[one], T[one], eps[one], cond)
        torch.testing.assert_close(found[one], expected)


def test_perp_neg_and_rescale_wrap_the_guidance_of_the_views() -> None:
    teacher = GaussianTeacher()
    supervision = supervise(
        options(view_prompts="interpolated", perp_neg=True, guidance_rescale=0.5),
        teacher,
        "a mug",
        "",
    )
    assert supervision.view_prompts is not None
    conds, weights = supervision.view_prompts.negatives(VIEWS)
    negatives = [cond.with_camera(VIEWS.camera) for cond in conds]
    guidance = GuidanceRescale(
        guidance=PerpNegGuidance(teacher, 4.0, negatives, weights), rescale=0.5
    )
    cond = supervision.view_prompts.at(VIEWS).with_camera(VIEWS.camera)
    expected = SDS(guidance).gradient(X, T, cond, noise())
    assert torch.equal(supervision.gradient(X, T, VIEWS, noise()), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_that_is_not_told_the_camera_never_sees_one(method: str) -> None:
    for told in (True, False):
        teacher = GaussianTeacher()
        gradient(
            teacher,
            method=method,
            view_prompts="discrete",
            perp_neg=True,
            camera_conditioning=told,
        )
        assert teacher.cameras
        assert all((camera is not None) == told for camera in teacher.cameras)


def test_guidance_strengthens_the_camera_too_where_it_is_asked() -> None:
    teacher = GaussianTeacher()
    found = gradient(teacher, camera_guidance=True)
    assert [camera is None for camera in teacher.cameras] == [False, True]
    cond = teacher.encode("a mug").with_camera(VIEWS.camera, drop_in_uncond=True)
    expected = SDS(ClassifierFreeGuidance(teacher, 4.0)).gradient(X, T, cond, noise())
    assert torch.equal(found, expected)
    assert not torch.allclose(found, gradient(), rtol=1e-3)


# --- times -----------------------------------------------------------------------------------


def test_the_linear_window_is_the_one_there_always_was() -> None:
    for progress in (0.0, 0.37, 1.0):
        low, high = 0.4 + (0.1 - 0.4) * progress, 0.98 + (0.48 - 0.98) * progress
        expected = low + (high - low) * torch.rand(5, generator=noise())
        assert torch.equal(sample_timesteps(options(), progress, 5, noise()), expected)


def test_times_reach_their_end_where_the_options_say() -> None:
    for policy, progress in (("linear", 0.5), ("sqrt", 0.5), ("jump", 0.5)):
        chosen = options(timestep_policy=policy, timestep_end=0.5)
        found = sample_timesteps(chosen, progress, 4000, noise())
        assert 0.1 <= found.min() < 0.11
        assert 0.47 < found.max() <= 0.48
    before = sample_timesteps(
        options(timestep_policy="jump", timestep_end=0.5), 0.49, 4000, noise()
    )
    assert before.min() >= 0.4


@pytest.mark.parametrize(("policy", "low", "high"), [("sqrt", 0.25, 0.73), ("uniform", 0.1, 0.98)])
def test_windows_of_other_policies(policy: str, low: float, high: float) -> None:
    found = sample_timesteps(options(timestep_policy=policy), 0.25, 4000, noise())
    assert low <= found.min() < low + 0.01
    assert high - 0.01 < found.max() <= high


def test_non_increasing_times_sink_from_the_largest_to_the_smallest() -> None:
    chosen = options(timestep_policy="non-increasing")
    times = [sample_timesteps(chosen, step / 50, 2, noise()) for step in range(51)]
    assert all(t[0] == t[1] for t in times)
    line = torch.stack(times)[:, 0]
    assert bool((line.diff() < 0).all())
    assert line[0].item() == pytest.approx(0.98)
    assert line[-1].item() == pytest.approx(0.1)


# --- the whole loop --------------------------------------------------------------------------


def config(**changed: Any) -> GenerateConfig:
    small = FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    )
    chosen = OptimizeConfig(
        steps=4,
        resolutions=(SIZE,),
        resolution_milestones=(),
        step_size=0.2,
        occupancy_resolution=8,
        field=small,
        **changed,
    )
    return GenerateConfig(prompt="a mug", device="cpu", checkpoint_seconds=1e6, optimize=chosen)


def run(given: GenerateConfig, folder: Path, stop_after: int = 99, **teacher: Any) -> list[Event]:
    events: list[Event] = []
    steps = iter(range(1, 100))
    optimize(
        given,
        GaussianTeacher(**teacher),
        checkpoint=CheckpointFile(folder),
        on_event=events.append,
        should_stop=lambda: next(steps) >= stop_after,
    )
    return events


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "sdi", "ode_steps": 2, "timestep_policy": "sqrt"},
        {"method": "cds", "view_prompts": "interpolated", "perp_neg": True},
    ],
    ids=["sdi", "cds"],
)
def test_a_resumed_run_of_any_method_is_the_uninterrupted_one(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    assert not [e for e in run(config(**changed), whole) if isinstance(e, Warning)]
    run(config(**changed), halves, stop_after=2)
    run(config(**changed), halves)
    first, second = CheckpointFile(whole).load(), CheckpointFile(halves).load()
    assert first is not None
    assert second is not None
    assert first[1]["step"] == second[1]["step"] == 4
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_view_prompts_that_the_teacher_cannot_tell_apart_are_said(tmp_path: Path) -> None:
    events = run(config(view_prompts="discrete"), tmp_path, stop_after=1, deaf=True)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert "--view-prompts" in warning.text


def test_a_teacher_that_knows_the_view_by_words_alone_wants_them_said() -> None:
    def said(*, takes_camera: bool, **changed: Any) -> str | None:
        teacher = GaussianTeacher(takes_camera=takes_camera)
        return supervise(options(**changed), teacher, "a mug", "").warning

    warning = said(takes_camera=False)
    assert warning is not None
    assert "--view-prompts interpolated" in warning
    assert said(takes_camera=True) is None
    assert said(takes_camera=True, camera_conditioning=False) == warning
    assert said(takes_camera=False, view_prompts="interpolated") is None
    # A picture has one side.
    assert said(takes_camera=False, target="image") is None


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "flag", "remedy"),
    [
        ({"method": "sdss"}, "--method", "give one of sds, sjc"),
        ({"view_prompts": "both"}, "--view-prompts", "give one of none, discrete"),
        ({"timestep_policy": "cosine"}, "--timestep-policy", "give one of linear, sqrt"),
        ({"guidance_rescale": 1.5}, "--guidance-rescale", "at most 1"),
        ({"perturbations": 0}, "--perturbations", "at least 1"),
        ({"timestep_interval": 0.9}, "--timestep-interval", "at most 0.5"),
        ({"ode_steps": 0}, "--ode-steps", "at least 1"),
        ({"image_weight": -0.1}, "--image-weight", "at least 0"),
        ({"method": "reconstruction", "guidance_rescale": 0.0}, "--guidance-rescale", "0.5"),
        ({"method": "csd", "guidance_scale": 0.0}, "--guidance-scale", "above 0"),
        ({"perp_neg": True}, "--perp-neg", "--view-prompts interpolated"),
        ({"loss_weighting": "sigma"}, "--loss-weighting", "give one of x0, eps, sigma2"),
        (
            {"method": "reconstruction", "guidance_rescale": 0.5, "loss_weighting": "eps"},
            "--loss-weighting",
            "give x0",
        ),
        ({"timestep_end": 0.0}, "--timestep-end", "above 0"),
        (
            {"target": "image", "refine": RefineOptions(refine_steps=5)},
            "--refine-steps",
            "--target mesh",
        ),
        (
            {
                "timestep_policy": "non-increasing",
                "timestep_min": (0.5, 0.5),
                "timestep_max": (0.5, 0.5),
            },
            "--timestep-policy",
            "--timestep-min below --timestep-max",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(
    changed: dict[str, Any], flag: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        OptimizeConfig(**changed)
    assert str(caught.value).startswith(f"{flag} is ")
    assert remedy in str(caught.value)


def test_the_options_survive_a_document() -> None:
    given = config(method="ism", perp_neg=True, view_prompts="discrete", camera_conditioning=False)
    assert from_dict(to_dict(given)) == given


# --- one call for both halves of guidance --------------------------------------------------------


@dataclass
class RowTeacher(GaussianTeacher):
    """Takes NaN in a row of the cameras for no camera; remembers how many samples it was asked."""

    nan_is_no_camera = True
    batches: list[int] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.batches.append(len(x_t))
        assert cond is not None
        if cond.camera is None:
            return super().__call__(x_t, t, cond)
        dropped = cond.camera.isnan().any(dim=1)[:, None, None, None]
        seen = super().__call__(x_t, t, replace(cond, camera=cond.camera.nan_to_num()))
        unseen = super().__call__(x_t, t, replace(cond, camera=None))
        return seen.with_value(torch.where(dropped, unseen.value, seen.value))


@pytest.mark.parametrize("method", ["sds", "csd", "ism", "nfsd", "sdi"])
def test_a_dropped_camera_may_be_a_row_where_calls_are_what_costs(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice, once = RowTeacher(), RowTeacher()
    expected = gradient(twice, method=method, camera_guidance=True)
    monkeypatch.setattr(supervision_module, "ONE_CALL_ON", {"cpu"})
    found = gradient(once, method=method, camera_guidance=True)
    torch.testing.assert_close(found, expected)
    assert len(once.batches) < len(twice.batches)
    assert sum(once.batches) == sum(twice.batches)
    # A teacher that cannot tell is asked as ever.
    plain = GaussianTeacher()
    torch.testing.assert_close(gradient(plain, method=method, camera_guidance=True), expected)
    assert any(camera is None for camera in plain.cameras)
    assert not any(camera is not None and camera.isnan().any() for camera in plain.cameras)
