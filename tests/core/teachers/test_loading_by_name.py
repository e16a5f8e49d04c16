"""Teachers as a user names them: a folder, a name of their own, an id; and what takes them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from torch import Tensor

from core.denoiser import Conditioning
from core.teachers.flux import FluxTeacher
from core.teachers.folder import TeacherFolder
from core.teachers.pretrained import PretrainedTeacher
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.teacher import noise_shape
from sds3d import cli, doctor, step_memory, teachers
from sds3d.embedded_guidance import check_embedded
from sds3d.errors import ConfigError, TeacherError
from sds3d.optimize import Optimization, StepClock
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.presets import generate_config
from sds3d.preview import PreviewConfig, draw_views
from sds3d.step_memory import StepMemory
from sds3d.user_config import UserConfig, config_path, read_user_config
from sds3d.view_prompts import VIEW_NAMES, ViewPrompts
from sds3d.views import Views

FAMILIES = ["sd-v", "sdxl", "sd3", "flux-schnell", "if"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path


def settings(text: str) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_says_what_it_is(name: str, tiny_folder: Callable[[str], Path]) -> None:
    settings("[teacher]\nimage_size = 16\n")
    teacher = teachers.load_teacher(str(tiny_folder(name)), "cpu")
    assert teacher.image_size == 16
    assert teachers.check_prompt(teacher, "a red mushroom") is None
    config = PreviewConfig(prompt="a red mushroom", sample_steps=1, guidance_scale=100.0)
    frames = draw_views(teacher, config)
    assert frames.shape == (4, 16, 16, 3)
    assert (frames[0] != frames[2]).any()  # front and back are asked for by their prompts


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loop_moves_a_field_by_a_teacher_of_latents_or_pixels(
    name: str, tiny_folder: Callable[[str], Path]
) -> None:
    settings("[teacher]\nimage_size = 16\n")
    teacher = teachers.load_teacher(str(tiny_folder(name)), "cpu")
    options = OptimizeConfig(
        steps=2,
        resolutions=(8,),
        resolution_milestones=(),
        view_prompts="interpolated",
        step_size=0.2,
        occupancy_resolution=8,
        field=FieldOptions(n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8),
    )
    config = generate_config(prompt="a red mushroom", device="cpu", optimize=options)
    loop = Optimization(config, teacher)
    (particle,) = loop.particles
    before = [p.detach().clone() for p in particle.parameters()]
    report = loop.advance(StepClock())
    assert report.finite
    assert any(not torch.equal(a, b) for a, b in zip(before, particle.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.module.parameters())


def test_view_prompts_mix_the_whole_as_they_mix_the_tokens(
    tiny_folder: Callable[[str], Path],
) -> None:
    teacher = teachers.load_teacher(str(tiny_folder("sdxl")), "cpu")
    # The tiny tokenizer ends a text at its first comma, so these have none.
    texts = teacher.encode([f"a car {name}" for name in VIEW_NAMES])
    views = Views(
        azimuth_deg=torch.tensor([180.0]),
        elevation_deg=torch.tensor([0.0]),
        distance=torch.tensor([2.9]),
    )
    found = ViewPrompts(texts=texts, interpolated=True).at(views)
    assert found.text is not None
    assert texts.text is not None
    assert found.pooled_text is not None
    assert texts.pooled_text is not None
    assert torch.allclose(found.text[0], texts.text[2])
    assert torch.allclose(found.pooled_text[0], texts.pooled_text[2])
    assert not torch.allclose(texts.pooled_text[0], texts.pooled_text[2])


def test_a_name_of_the_users_wins_over_the_programs(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("sd-eps")
    settings(f"[teachers]\nsd21 = {json.dumps(str(folder))}\n[teacher]\ndtype = 'float64'\n")
    assert teachers.teacher_folder("sd21") == folder
    teacher = teachers.load_teacher("sd21", "cpu")
    assert isinstance(teacher, StableDiffusionTeacher)
    assert teacher.unet.dtype == torch.float64
    assert noise_shape(teacher) == (4, 8, 8)


def test_what_is_not_there_is_refused_in_one_line(
    home: Path, tiny_folder: Callable[[str], Path]
) -> None:
    checkpoint = home / "model.safetensors"
    checkpoint.write_bytes(b"x")
    other = home / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    bare = home / "bare"
    bare.mkdir()
    settings('[teachers]\nmine = "/nowhere/at-all"\n')
    for name, expected in {
        "mine": f"'/nowhere/at-all' under [teachers] in {config_path()}, which is not there",
        "/nowhere/at-all": "and there is no such folder: give toybox",
        str(bare): "a folder without model_index.json: give the folder of a whole pipeline",
        "nope": "'nope': give toybox, toybox-guided, toybox-words, sd15",
        "sdxl": "hf download stabilityai/stable-diffusion-xl-base-1.0",
        "someone/some-model": "hf download someone/some-model",
        "../up/down/nothing": "and there is no such folder: give toybox",
        str(checkpoint): "from_single_file",
        str(other): "holds a WanPipeline, which is no teacher",
    }.items():
        with pytest.raises(TeacherError) as caught:
            teachers.load_teacher(name, "cpu")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    settings("[teacher]\nattention_slicing = true\n")
    with pytest.raises(ConfigError, match="attention_slicing is for UNets"):
        teachers.load_teacher(str(tiny_folder("sd3")), "cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teachers = 3", "teachers is 3: give a value of type dict"),
        ("[teachers]\na = 1", "teachers.a is 1: give a value of type str"),
        ("[teacher]\nspeed = 1", "teacher.speed is no setting: give one of dtype"),
        ("[teacher]\nimage_size = true", "teacher.image_size is True"),
        ("download = true", "download is no setting"),
        ("a = [", "cannot be read"),
    ],
)
def test_the_users_file_is_checked(text: str, message: str) -> None:
    assert read_user_config() == UserConfig()
    settings(text)
    with pytest.raises(ConfigError) as caught:
        read_user_config()
    assert message in str(caught.value)
    assert str(config_path()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_doctor_says_whether_a_teacher_is_whole(
    home: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_folder("sd3"), home / "teacher"))
    found = {finding.name: finding for finding in doctor.teacher_findings(str(folder))}
    assert all(finding.status == "ok" for finding in found.values())
    assert "SD3Transformer2DModel" in found["teacher transformer"].text
    assert "while the prompt is read" in found["teacher memory"].text
    assert "not measured on a GPU" in found["teacher step"].text
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = {finding.name: finding for finding in doctor.teacher_findings(str(folder))}
    assert found["teacher vae"].status == "problem"
    assert "is missing: download" in found["teacher vae"].text
    assert "teacher memory" not in found
    other = home / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (unlike,) = doctor.teacher_findings(str(other))
    assert unlike.status == "problem"
    assert "WanPipeline, which is no teacher here" in unlike.text
    (missing,) = doctor.teacher_findings("sdxl")
    assert missing.status == "problem"
    assert "hf download" in missing.text
    for check in ("_teacher", "_encoding", "_tinycudann", "_validator", "_ffmpeg"):
        monkeypatch.setattr(doctor, check, lambda: [])
    assert cli.main(["doctor", "--teacher", str(folder)]) == 1
    assert "problem teacher vae" in capsys.readouterr().out


def test_every_kind_that_is_let_in_has_its_class() -> None:
    for kind in set(teachers.KINDS) - {"ToyboxTeacher", "GuidedToyboxTeacher"}:
        folder = TeacherFolder(path=Path(), class_name=kind, index={}, components=())
        teachers.require_kind(folder)
        assert issubclass(family := teachers.family(folder), PretrainedTeacher)
        assert teachers.JOINED_VIEWS.get(kind, 1) == getattr(family, "views_per_object", 1)
    assert set(teachers.JOINED_VIEWS) <= set(teachers.KINDS)


def test_the_doctor_fetches_nothing_and_an_error_without_words_is_still_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def snapshot_download(_: str, *, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise RuntimeError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    settings("allow_download = true\n")
    for preset in (None, "csd"):
        found = doctor.teacher_findings("sdxl", preset)
        assert {finding.status for finding in found} == {"problem"}
        assert "let sds3d generate fetch them" in found[0].text
    with pytest.raises(TeacherError):
        teachers.outline_teacher("sdxl", "cpu", fetch=False)
    assert asked == [True] * 4
    with pytest.raises(TeacherError, match=r"cannot be had \(RuntimeError\)"):
        teachers.load_teacher("sdxl", "cpu")
    assert asked[-1] is False


def test_the_doctor_looks_at_a_second_stages_teacher_as_well(
    home: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[OptimizeConfig] = []

    def needs(_: object, options: OptimizeConfig) -> StepMemory:
        asked.append(options)
        return StepMemory(weights=1, peak=2)

    monkeypatch.setattr(step_memory, "step_memory", needs)
    first = str(tiny_folder("if"))
    found = {finding.name: finding for finding in doctor.teacher_findings(first, "csd")}
    assert found["teacher step"].status == "ok"
    assert found["second teacher sd21"].status == "problem"
    assert "hf download" in found["second teacher sd21"].text
    folder = Path(shutil.copytree(tiny_folder("sd-eps"), home / "second"))
    settings(f"[teachers]\nsd21 = {json.dumps(str(folder))}\n")
    found = {finding.name: finding for finding in doctor.teacher_findings(first, "csd")}
    assert all(finding.status == "ok" for finding in found.values())
    assert "UNet2DConditionModel" in found["second teacher unet"].text
    assert "the second stage of --preset csd (csd, 1 view" in found["second teacher step"].text
    assert (asked[-3].perp_neg, asked[-1].perp_neg) == (True, False)  # the first stage's, its own
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = {finding.name: finding for finding in doctor.teacher_findings(first, "csd")}
    assert found["second teacher vae"].status == "problem"
    # Where it is the first one's, or the preset is not asked for, there is none to look at.
    assert not any(f.name.startswith("second") for f in doctor.teacher_findings(first, "magic3d"))
    assert not any(f.name.startswith("second") for f in doctor.teacher_findings(first))


def test_without_a_preset_the_doctor_counts_the_largest_of_a_teachers_recipes(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def needs(_: object, options: OptimizeConfig) -> StepMemory:
        counted.append(options.method)
        return StepMemory(weights=1, peak=2**20 * (3 - options.latent) * options.views_per_step)

    monkeypatch.setattr(step_memory, "step_memory", needs)
    settings(f"[teachers]\nsd21 = {json.dumps(str(tiny_folder('sd-eps')))}\n")
    found = {finding.name: finding for finding in doctor.teacher_findings("sd21")}
    # Not the first one, which is sjc's, in latents.
    assert "--preset luciddreamer (ism, 4 views" in found["teacher step"].text
    assert counted[:5] == ["sjc", "sds", "vsd", "ism", "sdi"]


def test_embedded_guidance_is_a_flag_that_reaches_every_prompt(
    home: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings("[teacher]\nimage_size = 16\n")
    teacher = teachers.load_teacher(str(tiny_folder("flux-dev")), "cpu")

    def conditionings(**changed: Any) -> list[Conditioning]:
        options = OptimizeConfig(method="nfsd", view_prompts="interpolated", **changed)
        config = generate_config(prompt="a mug", device="cpu", optimize=options)
        found = Optimization(config, teacher).supervision
        assert found.view_prompts is not None
        assert found.negative is not None
        whole = [found.cond, found.view_prompts.texts, found.negative]
        return whole + [cond.uncond for cond in whole if cond.uncond is not None]

    for changed, expected in (({}, 3.5), ({"embedded_guidance": 2.0}, 2.0)):
        scales = [cond.guidance_scale for cond in conditionings(**changed)]
        assert len(scales) == 5
        assert all(scale is not None and bool((scale == expected).all()) for scale in scales)
    # Schnell takes none, and neither does what the command line is given here.
    plain = teachers.load_teacher(str(tiny_folder("flux-schnell")), "cpu")
    check_embedded(2.0, plain, teacher)
    check_embedded(0.0, plain)
    words = ["generate", "a mug", "--teacher", str(tiny_folder("flux-schnell")), "--steps", "1"]
    out = home / "out"
    assert cli.main([*words, "--embedded-guidance", "2", "--device", "cpu", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sds3d: --embedded-guidance is 2: this teacher takes no guidance")
    assert not list(out.iterdir())
    # And in a preview.
    asked: list[Tensor] = []
    call = FluxTeacher.__call__

    def listen(self: Any, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Any:
        assert cond is not None
        assert cond.guidance_scale is not None
        asked.append(cond.guidance_scale)
        return call(self, x_t, t, cond)

    monkeypatch.setattr(FluxTeacher, "__call__", listen)
    draw_views(teacher, PreviewConfig(prompt="a mug", sample_steps=1, embedded_guidance=2.0))
    assert asked
    assert all(bool((scale == 2.0).all()) for scale in asked)


# --- views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd-eps", "if"])
def test_a_teacher_that_takes_no_camera_is_asked_once_in_a_step(
    name: str, tiny_folder: Callable[[str], Path]
) -> None:
    """Both halves of guidance in one call, though --camera-guidance is on by default."""
    settings("[teacher]\nimage_size = 16\n")
    teacher = teachers.load_teacher(str(tiny_folder(name)), "cpu")
    assert isinstance(teacher, PretrainedTeacher)
    network = teacher.unet if isinstance(teacher, StableDiffusionTeacher) else teacher.module
    batches: list[int] = []
    hook = network.register_forward_pre_hook(lambda _module, x: batches.append(len(x[0])))
    config = generate_config(
        prompt="a mug",
        device="cpu",
        optimize=OptimizeConfig(resolutions=(8,), resolution_milestones=(), views_per_step=3),
    )
    assert config.optimize.camera_guidance
    loop = Optimization(config, teacher)
    assert loop.advance(StepClock()).finite
    hook.remove()
    assert batches == [6]


def test_the_preview_of_a_teacher_without_cameras_asks_the_four_view_prompts(
    home: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    encode = StableDiffusionTeacher.encode

    def listen(self: StableDiffusionTeacher, prompts: list[str], negative: str = "") -> object:
        asked.append(prompts)
        return encode(self, prompts, negative)

    monkeypatch.setattr(StableDiffusionTeacher, "encode", listen)
    settings("[teacher]\nimage_size = 16\n")
    words = ["preview", "a mug", "--teacher", str(tiny_folder("sd-eps")), "--sample-steps", "1"]
    assert cli.main([*words, "--device", "cpu", "--out", str(home / "out")]) == 0
    assert asked == [
        ["a mug, front view", "a mug, side view", "a mug, back view", "a mug, overhead view"]
    ]
    with Image.open(home / "out" / "a-mug-preview-0.png") as picture:
        assert picture.width > 3 * picture.height
