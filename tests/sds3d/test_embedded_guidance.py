"""A teacher with guidance built in, in a run: one pass for two, and what it cannot honour."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.field.guidance import GuidedTeacher
from core.prediction import Prediction
from core.schedule import FlowSchedule, per_sample
from sds3d import cli, preview
from sds3d.config import PresetName
from sds3d.embedded_guidance import check_guidance, check_supervision
from sds3d.errors import ConfigError
from sds3d.methods import METHOD_CLASSES
from sds3d.optimize_config import MethodName, OptimizeConfig, RefineOptions
from sds3d.presets import PRESETS, with_method
from sds3d.supervision import Supervision, supervise
from sds3d.teachers import EMBEDDED, GUIDED, load_teacher
from sds3d.views import Views, ring

SIDE = 8
VIEWS: Views = ring(3, 20.0)
GUIDED_ONLY = [name for name, kind in METHOD_CLASSES.items() if kind.guided_only]
X = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.3, 0.5, 0.7])


@dataclass
class TwoPass:
    """The exact denoiser of colours about a mean that text and camera choose; counts its calls."""

    image_size: int = SIDE
    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    calls: int = 0
    weights_sha256: str = "b" * 64

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        n = 1 if isinstance(prompts, str) else len(prompts)
        text = torch.full((n, 1, 3), 0.4)
        return Conditioning(text=text, uncond=Conditioning(text=torch.zeros_like(text)))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.calls += 1
        assert cond is not None
        assert cond.text is not None
        mean = cond.text[:, 0, :, None, None]
        if cond.camera is not None:
            mean = mean + torch.deg2rad(cond.camera[:, 0]).cos()[:, None, None, None] / 4
        alpha, sigma = per_sample(1 - t, x_t), per_sample(t, x_t)
        gain = alpha * 0.2 / (alpha.square() * 0.2 + sigma.square())
        return Prediction.from_x0(mean + gain * (x_t - alpha * mean), x_t, t, self.schedule)

    def check_prompt(self, prompt: str) -> SimpleNamespace:
        return SimpleNamespace(warning=None)


@dataclass
class OnePass(TwoPass):
    """Its perfect student."""

    guidance_scales: tuple[float, float] = (1.0, 7.5)

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        assert not negative_prompt
        return replace(super().encode(prompts), uncond=None)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.calls += 1
        assert cond is not None
        assert cond.text is not None
        assert cond.camera is not None
        assert cond.uncond is None
        # Against neither text nor camera.
        uncond = Conditioning(text=torch.zeros_like(cond.text))
        return GuidedTeacher(TwoPass())(x_t, t, replace(cond, uncond=uncond))


def gradient(teacher: Any, **changed: Any) -> Tensor:
    options = OptimizeConfig(**changed)
    supervision = supervise(options, teacher, "a mug", "")
    return supervision.gradient(X, T, VIEWS, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", GUIDED_ONLY)
@pytest.mark.parametrize("scale", [1.0, 4.0, 7.5])
def test_one_pass_gives_the_gradient_of_two(method: Any, scale: float) -> None:
    two, one = TwoPass(), OnePass()
    expected = gradient(two, method=method, guidance_scale=scale)
    found = gradient(one, method=method, guidance_scale=scale)
    torch.testing.assert_close(found, expected)
    # At scale 1 there is nothing that the second pass would change.
    assert two.calls == (1 if scale == 1 else 2) * one.calls > 0
    assert expected.norm() > 0.1


class Taught(TwoPass):
    def adapt(self, rank: int, generator: torch.Generator) -> Any:
        weight = torch.nn.Parameter(torch.zeros(rank))
        return SimpleNamespace(trainable={"weight": weight}, schedule=self.schedule)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_a_method_is_of_its_class_and_says_truly_whether_one_answer_will_do(
    method: MethodName,
) -> None:
    options = replace(with_method(OptimizeConfig(), method), method=method)
    made = supervise(options, Taught(), "a mug", "").distillation(VIEWS)
    assert type(made) is METHOD_CLASSES[method]
    if method in GUIDED_ONLY:
        return  # shown above
    with pytest.raises((ValueError, ConfigError)):
        supervise(options, OnePass(), "a mug", "").gradient(X, T, VIEWS, torch.Generator())


def test_view_prompts_are_honoured_too() -> None:
    one = OnePass()
    torch.testing.assert_close(
        gradient(one, view_prompts="interpolated"), gradient(TwoPass(), view_prompts="interpolated")
    )
    assert one.calls == 1


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"guidance_scale": 9.0},
        "",
        "--guidance-scale is 9: toybox-guided was distilled for 1 to 7.5",
    ),
    ({"guidance_scale": 0.5}, "", "--guidance-scale is 0.5"),
    (
        {"refine": RefineOptions(refine_steps=2, refine_guidance_scale=50.0)},
        "",
        "--refine-guidance-scale is 50",
    ),
    ({}, "a ghost", "--negative-prompt is 'a ghost'"),
    ({"camera_guidance": False}, "", "--no-camera-guidance"),
    ({"camera_conditioning": False}, "", "--no-camera-conditioning"),
    ({"view_prompts": "interpolated", "perp_neg": True}, "", "--perp-neg"),
    ({"guidance_rescale": 0.5}, "", "--guidance-rescale is 0.5"),
    *[
        ({"method": method}, "", f"--method is {method}")
        for method in ("csd", "ism", "sdi", "nfsd", "vsd")
    ],
    ({"method": "reconstruction", "guidance_rescale": 0.5}, "", "--method is reconstruction"),
]


@pytest.mark.parametrize(("changed", "negative", "said"), REFUSED)
def test_what_it_cannot_honour_is_refused_with_the_remedy(
    changed: dict[str, Any], negative: str, said: str
) -> None:
    options = OptimizeConfig(**changed)
    with pytest.raises(ConfigError) as caught:
        check_supervision(OnePass(), "toybox-guided", options, negative)
    text = str(caught.value)
    assert text.startswith(said)
    assert text.endswith("give --teacher toybox") or text.endswith("or --teacher toybox")
    assert "\n" not in text
    # A teacher of two passes is asked anything.
    check_supervision(TwoPass(), "toybox", options, negative)


def test_the_defaults_and_the_embedded_teacher_s_presets_are_honoured() -> None:
    presets: tuple[PresetName, ...] = ("fast", "balanced", "quality")
    for name in presets:
        check_supervision(OnePass(), "toybox-guided", PRESETS[name].optimize, "")
    check_guidance(OnePass(), "toybox-guided", preview.PreviewConfig.guidance_scale)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guidance-scale", "8"], "distilled for 1 to 7.5"),
        (["--negative-prompt", "a ghost"], "--negative-prompt"),
        (["--no-camera-guidance"], "--no-camera-guidance"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    fakes: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = fakes.make_parts(teacher=OnePass())
    command = ["generate", "a red mushroom", "--teacher", "toybox-guided", "--out", str(tmp_path)]
    assert cli.main([*command, *words], parts=parts) == 2
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if said in line]
    assert sum(line.startswith("sds3d: ") for line in error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_preview_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sds3d import teachers

    monkeypatch.setattr(preview, "draw_views", lambda *_: pytest.fail("nothing may be drawn"))
    monkeypatch.setattr(teachers, "teacher_folder", lambda _, **__: tmp_path)
    monkeypatch.setattr(teachers, "load_teacher", lambda *_: OnePass())
    config = preview.PreviewConfig(
        prompt="a mug", teacher="toybox-guided", guidance_scale=20.0, device="cpu", out=tmp_path
    )
    with pytest.raises(ConfigError, match="toybox-guided was distilled for 1 to 7"):
        preview.preview(config)


def test_the_shipped_one_says_in_one_pass_most_of_what_the_embedded_teacher_says_in_two() -> None:
    """On pictures that the teacher itself makes of a prompt, at the times that matter to a run."""
    two, one = load_teacher(EMBEDDED, "cpu"), load_teacher(GUIDED, "cpu")
    options = OptimizeConfig()
    prompt, views = "a yellow duck", ring(4, 20.0)
    alone = replace(options, guidance_scale=1.0)

    def answers(asked: Supervision, x_t: Tensor, t: float) -> Tensor:
        return asked.denoiser(views)(x_t, torch.full((4,), t), asked.condition(views)).x0

    two_passes, one_pass, unguided = (
        supervise(given, teacher, prompt, "")
        for given, teacher in ((options, two), (options, one), (alone, two))
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 64, 64, generator=generator)
    noises = torch.randn(4, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        pictures = answers(two_passes, noise, 0.999).clamp(-1, 1)
        missed, changed = [], []
        for t in (0.9, 0.7, 0.5):
            x_t = (1 - t) * pictures + t * noises
            wanted = answers(two_passes, x_t, t)
            missed.append((answers(one_pass, x_t, t) - wanted).square().mean())
            changed.append((answers(unguided, x_t, t) - wanted).square().mean())
    # The root mean square that it misses of what guidance changes; 1 is no guidance at all.
    assert (torch.stack(missed).mean() / torch.stack(changed).mean()).sqrt() < 0.75
