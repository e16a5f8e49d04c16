"""The form's options: the command line's own, with its words, each of which reaches the run."""

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest

from sds3d.config import GenerateConfig, MeshConfig, PresetName
from sds3d.config_json import to_dict
from sds3d.optimize_config import OptimizeConfig
from sds3d.presets import PRESETS, generate_config
from sds3d.ui.command import command_line
from sds3d.ui.desk import Wish
from sds3d.ui.form import FIELDS, Form, form_of, preset_values, wish_of_form
from sds3d.ui.options import (
    NOT_OFFERED,
    RESOLUTION,
    Choice,
    all_choices,
    choices,
    read_values,
    values_of,
)

NEEDS: dict[str, dict[str, Any]] = {
    "perp_neg": {"view_prompts": "interpolated"},
    "particles": {"method": "vsd"},
    "rgb_refinement": {"latent": True},
}
"""What an option only goes together with."""


def _other(choice: Choice, value: Any) -> Any:
    """Another value than the preset's that the option takes."""
    if choice.kind is bool:
        return not value
    if choice.choices:
        return next(word for word in reversed(choice.choices) if word != value)
    if choice.kind is tuple:
        first, *rest = map(float, value.split())
        return " ".join(f"{number:g}" for number in (first - 0.01, *rest))
    if choice.kind is str:
        return "toybox"
    if choice.kind is int:
        return value // 2 if value > 60 else 2 * value or 10
    return value / 2 if value else 0.125


def _in(config: GenerateConfig, name: str) -> Any:
    if name == RESOLUTION:
        return config.optimize.resolutions[-1]
    for part in (config.mesh, config.optimize, config.optimize.refine):
        if hasattr(part, name):
            return getattr(part, name)
    raise AssertionError(name)


@pytest.mark.parametrize("choice", all_choices(), ids=lambda choice: choice.name)
def test_every_choice_reaches_the_run_and_the_command_line(choice: Choice) -> None:
    names = [c.name for c in all_choices()]
    values = dict(zip(names, preset_values("fast"), strict=True))
    given = values | NEEDS.get(choice.name, {})
    given[choice.name] = _other(choice, values[choice.name])
    wish = wish_of_form("a mushroom", "", 1, "fast", "toybox", *given.values())
    config, plain = wish.config(), generate_config("fast", prompt="a mushroom", seed=1)
    found, before = _in(config, choice.name), _in(plain, choice.name)
    assert found != before
    if choice.kind is tuple:
        assert " ".join(f"{number:g}" for number in found) == given[choice.name]
    else:
        assert found == given[choice.name]
    flag = "resolutions" if choice.name == RESOLUTION else choice.name
    flag = ("no_" if found is False else "") + flag
    assert f"--{flag.replace('_', '-')}" in command_line(config)
    # And nothing else changed but what goes with it.
    restored = dict(zip(names, values_of(config), strict=True))
    changed = {name for name in names if restored[name] != values[name]}
    assert changed == {choice.name, *NEEDS.get(choice.name, {})}


def test_every_option_is_offered_or_left_out_for_a_reason() -> None:
    kinds = (OptimizeConfig, MeshConfig, type(OptimizeConfig().refine))
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)} - {"refine"}
    offered = [choice.name for choice in all_choices()]
    assert len(offered) == len(set(offered))
    assert {*offered} - {RESOLUTION} == known - set(NOT_OFFERED)
    assert set(NOT_OFFERED) < known
    for name in ("method", "view_prompts", "perp_neg", "guidance_rescale", "timestep_policy"):
        assert name in offered
    assert sum(map(len, choices().values())) == len(offered)


def test_the_words_beside_a_field_are_those_of_the_command_line() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sds3d.cli", "generate", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100", "PATH": "", "PYTHONUTF8": "1"},
    )
    # Narrow, so that options stand in one column; where lines break does not count.
    said = re.sub(r"[\s│]", "", ran.stdout)
    for choice in all_choices():
        assert len(choice.help) > 10
        text = choice.help.removesuffix(" This is the last.")
        assert re.sub(r"\s", "", text) in said, choice.name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_form_of_a_preset_means_the_preset(preset: PresetName) -> None:
    teacher = PRESETS[preset].teacher
    wish = wish_of_form("a mushroom", "", 3, preset, teacher, *preset_values(preset))
    config = wish.config()
    assert to_dict(config) == to_dict(Wish(prompt="a mushroom", seed=3, preset=preset).config())
    assert wish_of_form(*form_of(config)).config() == config
    # An empty field leaves it to the preset.
    empty = [None] * len(all_choices())
    assert read_values(empty) == {}
    assert wish_of_form("a mushroom", "", 3, preset, teacher, *empty).config() == config


def test_the_form_has_a_component_for_each_with_its_help() -> None:
    import gradio as gr

    form = Form(["toybox"], any_teacher=False)
    with gr.Blocks():
        form.build_head()
        form.build_rest()
    assert len(form.inputs) == FIELDS
    values = preset_values("fast")
    for choice, value in zip(all_choices(), values, strict=True):
        component = form.options[choice.name]
        assert component.info == choice.help
        assert component.value == value
    assert form.options["method"].choices[0][1] == "sds"


def test_options_of_the_api_that_are_none_are_named() -> None:
    from sds3d.errors import ConfigError

    for options, named in (
        ({"magic": 1}, "magic"),
        ({"steps": "many"}, "steps"),
        ({"method": 7}, "method"),
        ({"resolution": "64"}, "resolution"),
    ):
        with pytest.raises(ConfigError, match=named):
            Wish(prompt="a mushroom", options=options).config()
