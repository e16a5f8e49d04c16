"""The published recipes: every figure against its source, copied here; teachers and refusals.

The sources, each read in its own repository: TS is threestudio's configs/<name>.yaml.
"""

from pathlib import Path
from typing import Any, get_args

import pytest

from sds3d import cli
from sds3d.batch import prompts
from sds3d.batch.config import BatchConfig
from sds3d.batch.prompts import parse
from sds3d.config import PresetName
from sds3d.config_json import from_dict, to_dict
from sds3d.errors import TeacherError
from sds3d.generate import generate
from sds3d.presets import PRESETS, generate_config
from sds3d.recipes import RECIPES
from sds3d.teachers import PRESETS as TEACHERS
from sds3d.user_config import config_path

COMMON = {
    # "16 levels x 2 features, 2^19 entries, base 16, growth 1.4473, one hidden layer of 64"
    ("field", "n_levels"): 16,
    ("field", "n_features"): 2,
    ("field", "log2_table_size"): 19,
    ("field", "base_resolution"): 16,
    ("field", "per_level_scale"): pytest.approx(1.447269237440378),
    ("field", "hidden_dim"): 64,
    # "start at 64x64; CFG scale 100; t in [0.02, 0.98]; w(t) = 1 - alpha_bar; about 10,000 steps"
    "resolutions": (64,),
    "resolution_milestones": (),
    "guidance_scale": 100.0,
    "timestep_min": (0.02, 0.02),
    "timestep_max": (0.98, 0.98),
    "timestep_policy": "uniform",
    "loss_weighting": "sigma2",
    "steps": 10_000,
    # "Adam, encoding lr 1e-2, MLP 1e-3", constant; "elevation -10..45"
    "encoding_learning_rate": 1e-2,
    "mlp_learning_rate": 1e-3,
    "final_learning_rate": 1.0,
    "elevation_range_deg": (-10.0, 45.0),
    # "occupancy grid 32^3 updated every 16 steps"; "view prompts: 4 views"; batch 1
    "occupancy_resolution": 32,
    "occupancy_interval": 16,
    "view_prompts": "discrete",
    "perp_neg": False,
    "views_per_step": 1,
    "latent": False,
    # lambda_opaque 0 in TS dreamfusion-sd, magic3d-coarse-sd, prolificdreamer, in csd-if and
    # mvdream-sd21; none in TS sjc and in LucidDreamer
    "entropy_weight": 0.0,
}
"""What the peers agree on for a Stable Diffusion teacher (TS dreamfusion-sd)."""

OF_EACH: dict[str, dict[Any, Any]] = {
    "dreamfusion": {"method": "sds"},
    # TS sjc: use_sjc, n_feature_dims 4, min_step_percent 0.01, max_step_percent 0.97; the paper's
    # gradient is w = 1 for the noise.
    "sjc": {
        "method": "sjc",
        "perturbations": 1,
        "latent": True,
        "timestep_min": (0.01, 0.01),
        "timestep_max": (0.97, 0.97),
        "loss_weighting": "eps",
    },
    # TS magic3d-coarse-sd: weighting_strategy uniform. TS magic3d-refine-sd: max_steps 5000, 512,
    # t 0.02 to 0.5, fovy 30 to 45, isosurface_resolution 128, lr 0.01, normal consistency 10000
    # on a loss that is summed over 4 x 64 x 64 latents.
    "magic3d": {
        "method": "sds",
        "loss_weighting": "eps",
        ("refine", "refine_steps"): 5000,
        ("refine", "refine_teacher"): "",
        ("refine", "refine_resolution"): 512,
        ("refine", "refine_views_per_step"): 1,
        ("refine", "refine_guidance_scale"): 100.0,
        ("refine", "refine_timesteps"): (0.02, 0.5),
        ("refine", "refine_fovy_range_deg"): (30.0, 45.0),
        ("refine", "tetrahedra_resolution"): 128,
        ("refine", "surface_learning_rate"): 0.01,
        ("refine", "texture_learning_rate"): 0.01,
        ("refine", "roughness_weight"): 10_000 / 16_384,
    },
    # "VSD: CFG 7.5, 25k steps, 64 to 512 px at 5000, t max to 0.5 at 5000, LoRA lr 1e-4"
    "prolificdreamer": {
        "method": "vsd",
        "particles": 1,
        "guidance_scale": 7.5,
        "steps": 25_000,
        "resolutions": (64, 512),
        "resolution_milestones": (0.2,),
        "timestep_policy": "jump",
        "timestep_end": 0.2,
        "timestep_max": (0.98, 0.5),
        "lora_learning_rate": 1e-4,
    },
    # "ISM: CFG 7.5, 5000 steps, t 0.02-0.5, delta_t 100 to 50"; LucidDreamer configs/hamburger:
    # max_t_range 0.98, warmup_iter 1500, xs_inv_steps 5, C_batch_size 4, theta_range 45 to 105.
    "luciddreamer": {
        "method": "ism",
        "guidance_scale": 7.5,
        "steps": 5000,
        "timestep_policy": "linear",
        "timestep_max": (0.98, 0.5),
        "timestep_end": 0.3,
        "timestep_interval": 0.05,
        "ode_steps": 5,
        "views_per_step": 4,
        "elevation_range_deg": (-15.0, 45.0),
        "resolutions": (512,),
        "loss_weighting": "x0",
    },
    # "SDI: CFG 7.5, t 0.25-0.98, 10 inversion steps, eta 0.3"; TS sdi: 512, use_perp_neg, t_anneal
    # (one time, linear in progress), a loss on the denoised latents themselves.
    "sdi": {
        "method": "sdi",
        "guidance_scale": 7.5,
        "timestep_policy": "linear",
        "timestep_max": (0.98, 0.25),
        "timestep_min": (0.98, 0.25),
        "ode_steps": 10,
        "inversion_eta": 0.3,
        "perp_neg": True,
        "view_prompts": "interpolated",
        "resolutions": (512,),
        "loss_weighting": "x0",
        # lambda_opaque 0.1 of a binary cross entropy, ln 2 of which are a bit, on a summed loss
        "entropy_weight": pytest.approx(0.1 * 0.693147180559945 / 16_384),
    },
    # Classifier-Score-Distillation csd-if: cond_scale 1, t max 0.98 to 0.5 at 5000 of 10,000,
    # weighting uniform, 12 levels to 512, lr 0.001, perp-neg; csd-sd-refine: 10,000 steps at 512,
    # t 0.02 to 0.5, isosurface_resolution 256, lr 0.001, normal consistency 1000, use_perp_neg
    # false (true in csd-if).
    "csd": {
        "method": "csd",
        "guidance_scale": 1.0,
        "timestep_policy": "jump",
        "timestep_end": 0.5,
        "timestep_max": (0.98, 0.5),
        "loss_weighting": "eps",
        "perp_neg": True,
        "view_prompts": "interpolated",
        "encoding_learning_rate": 1e-3,
        ("field", "n_levels"): 12,
        ("field", "per_level_scale"): pytest.approx(1.3703509847201236),
        ("refine", "refine_teacher"): "sd21",
        ("refine", "refine_steps"): 10_000,
        ("refine", "refine_resolution"): 512,
        ("refine", "refine_timesteps"): (0.02, 0.5),
        ("refine", "refine_perp_neg"): False,
        ("refine", "tetrahedra_resolution"): 256,
        ("refine", "surface_learning_rate"): 1e-3,
        ("refine", "texture_learning_rate"): 1e-3,
        ("refine", "roughness_weight"): 1000 / 16_384,
    },
    # "MVDream: CFG 50, rescale 0.5, t max 0.98 to 0.5 and min 0.98 to 0.02 by step 8000, 64 px
    # batch 8 then 256 px batch 4"; its mvdream-sd21: elevation 0 to 30, resolution_milestones 5000
    # of 10,000, recon_loss, batch_size 4 throughout. Its own guidance keeps the camera.
    "mvdream": {
        "method": "reconstruction",
        "guidance_scale": 50.0,
        "guidance_rescale": 0.5,
        "timestep_policy": "linear",
        "timestep_max": (0.98, 0.5),
        "timestep_min": (0.98, 0.02),
        "timestep_end": 0.8,
        "resolutions": (64, 256),
        "resolution_milestones": (0.5,),
        "views_per_step": 4,
        "elevation_range_deg": (0.0, 30.0),
        "view_prompts": "none",
        "camera_guidance": False,
        "loss_weighting": "x0",
    },
    # latent-nerf src/latent_nerf/configs/train_config.py: iters 5000, lr 1e-3; TS latentnerf:
    # n_feature_dims 4, guidance_scale 100. Its lambda_sparsity 5e-4 is of the entropy in bits
    # (losses/sparsity_loss.py), beside a gradient that is summed over the latents.
    "latent-nerf": {
        "method": "sds",
        "latent": True,
        "steps": 5000,
        "entropy_weight": 5e-4 / 16_384,
    },
}

TEACHER_OF = {
    # "runwayml/stable-diffusion-v1-5" in TS dreamfusion-sd, v1-4 in latent-nerf
    "dreamfusion": "sd15",
    "latent-nerf": "sd15",
    # "stabilityai/stable-diffusion-2-1-base" in the others
    **dict.fromkeys(("sjc", "magic3d", "prolificdreamer", "luciddreamer", "sdi"), "sd21"),
    "csd": "deepfloyd-if",
    "mvdream": "mvdream",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_every_recipe_has_its_table_and_every_preset_its_name() -> None:
    assert set(RECIPES) == set(OF_EACH) == set(TEACHER_OF)
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize("name", list(OF_EACH))
def test_each_value_is_the_published_one(name: Any) -> None:
    options = PRESETS[name].optimize
    for place, expected in {**COMMON, **OF_EACH[name]}.items():
        found: Any = options
        for attribute in (place,) if isinstance(place, str) else place:
            found = getattr(found, attribute)
        assert found == expected, place
    if not any(isinstance(p, tuple) and p[0] == "refine" for p in OF_EACH[name]):
        assert options.refine.refine_steps == 0
    assert PRESETS[name].teacher == TEACHER_OF[name]
    assert name == "mvdream" or PRESETS[name].teacher in TEACHERS


@pytest.mark.parametrize("name", list(OF_EACH))
def test_a_recipe_asks_for_its_teacher_and_survives_a_document(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether the teachers are on this machine is another question.
    for look in ("teacher_folder", "check_refine_teacher"):
        monkeypatch.setattr(prompts, look, lambda _: None, raising=False)
    config = generate_config(name, prompt="a hamburger")
    assert config.teacher == TEACHER_OF[name]
    assert from_dict(to_dict(config)) == config
    assert generate_config(name, prompt="a hamburger", teacher="toybox").teacher == "toybox"
    # A list of prompts takes it over too, unless it names another one.
    for given, expected in (("", TEACHER_OF[name]), ("toybox", "toybox")):
        batch = BatchConfig(prompts="-", preset=name, teacher=given)
        (line,) = parse(b"a hamburger\n", batch, as_json=False).lines
        assert line.config.teacher == expected


@pytest.mark.parametrize("name", list(OF_EACH))
def test_a_teacher_that_is_not_here_is_one_line_that_says_what_to_do(
    name: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "a hamburger", "--preset", name, "--out", str(home / "out")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--preset {name} is a recipe for the teacher {TEACHER_OF[name]}" in line
    assert ("convert_mvdream" if name == "mvdream" else "hf download") in line
    assert str(config_path()) in line


def test_another_teacher_that_is_missing_is_not_blamed_on_the_preset(home: Path) -> None:
    config = generate_config("sdi", prompt="a hamburger", teacher="nowhere", out=home / "out")
    with pytest.raises(TeacherError, match=r"^--teacher is 'nowhere'"):
        generate(config)


def test_the_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
