"""The options of the command line as fields of the form: each with the words of `--help`.

What is offered is read from the options' own classes, so that one which is added there comes into
the form by itself.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from sds3d.config import GenerateConfig, MeshConfig
from sds3d.errors import ConfigError
from sds3d.optimize_config import OptimizeConfig

RESOLUTION = "resolution"
"""The one choice that is no option of its own: the last, and largest, of --resolutions."""

NOT_OFFERED = {
    "extra_steps": "it is what Continue sets",
    "resolutions": "the form has its last side alone",
    "resolution_milestones": "they go with the number of --resolutions",
    "field": "the preset chooses the field",
    "target": "the page makes meshes",
    "image": "the page makes meshes",
    "formats": "the page offers both",
}
"""Options that the form leaves to presets and to the command line, and why."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Method": (
        "method",
        "steps",
        "guidance_scale",
        "embedded_guidance",
        "guidance_rescale",
        "inversion_eta",
        "ode_steps",
        "image_weight",
        "timestep_interval",
        "perturbations",
        "loss_weighting",
        "particles",
        "lora_rank",
        "lora_learning_rate",
    ),
    "Views": (
        "view_prompts",
        "perp_neg",
        "camera_conditioning",
        "camera_guidance",
        RESOLUTION,
        "views_per_step",
        "elevation_range_deg",
    ),
    "Diffusion times": ("timestep_policy", "timestep_max", "timestep_min", "timestep_end"),
    "Mesh": ("max_faces", "texture_size", "mesh_resolution"),
}
"""What is asked for where; every other option comes under `REST`, those of a part of the options
that is a class of its own under its title."""

REST = "Rates and weights"
TITLES = {"refine": "Second stage, on the mesh"}
LABELS = {
    "guidance_scale": "Guidance",
    "max_faces": "Most faces",
    "texture_size": "Texture (px)",
    "ode_steps": "ODE steps",
    "inversion_eta": "Inversion eta",
    "cuda_graphs": "CUDA graphs",
    "lora_rank": "LoRA rank",
    "lora_learning_rate": "LoRA learning rate",
    "perp_neg": "Perp-Neg",
    "refine_perp_neg": "Perp-Neg in the second stage",
    "mlp_learning_rate": "MLP learning rate",
    "rgb_refinement": "RGB refinement",
    RESOLUTION: "Resolution of the views (px)",
    "mesh_resolution": "Grid of the surface (cells)",
    "elevation_range_deg": "Elevations (degrees)",
    "timestep_max": "Largest times",
    "timestep_min": "Smallest times",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One field of the form.

    Attributes:
        name: Of the option, with underscores.
        place: The parts of a config's document in which it stands, from the outside.
        label: Its name on the page.
        help: What the command line says of it.
        kind: bool, int, float, str, or tuple for numbers that stand together.
        choices: The values of a kind str that has some.
    """

    name: str
    place: tuple[str, ...]
    label: str
    help: str
    kind: type
    choices: tuple[str, ...] = ()

    def shown(self, config: GenerateConfig) -> Any:
        """The value in the form that means what `config` holds."""
        if self.name == RESOLUTION:
            return config.optimize.resolutions[-1]
        part: Any = config
        for name in self.place:
            part = getattr(part, name)
        value = getattr(part, self.name)
        return " ".join(f"{number:g}" for number in value) if self.kind is tuple else value

    def read(self, value: Any) -> Any:
        """What the form's `value` asks for; None leaves it to the preset.

        Raises ConfigError for what is no value of this kind.
        """
        if value is None or value == "":
            return None
        flag = f"--{self.name.replace('_', '-')}"
        if self.kind is bool:
            return _of_type(bool, value, flag, "true or false")
        if self.kind is str:
            return _of_type(str, value, flag, "a word")
        if self.kind is tuple:
            words = _of_type(str, value, flag, "numbers with a blank between").split()
            return tuple(_number(word, flag) for word in words)
        number = _number(value, flag)
        if self.kind is float:
            return number
        if number != int(number):
            raise ConfigError(f"{flag} is {value!r}: give a whole number")
        return int(number)


def _of_type(kind: type, value: Any, flag: str, remedy: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{flag} is {value!r}: give {remedy}")
    return value


def _number(value: Any, flag: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{flag} is {value!r}: give a number")
    return number


@cache
def choices() -> Mapping[str, tuple[Choice, ...]]:
    """Every choice of the form, by the group it stands in, in the order of the page."""
    parts = _parts(OptimizeConfig, "optimize") | _parts(MeshConfig, "mesh")
    of_its_own = {place[1]: found for place, found in parts.items() if len(place) > 1}
    known = {c.name: c for place, found in parts.items() if len(place) == 1 for c in found}
    known[RESOLUTION] = Choice(
        name=RESOLUTION,
        place=("optimize",),
        label=LABELS[RESOLUTION],
        help=f"{help_texts(OptimizeConfig)['resolutions']} This is the last.",
        kind=int,
    )
    grouped = {title: tuple(known.pop(name) for name in names) for title, names in GROUPS.items()}
    titled = {TITLES.get(name, name.capitalize()): found for name, found in of_its_own.items()}
    return {**grouped, REST: tuple(known.values()), **titled}


def all_choices() -> tuple[Choice, ...]:
    """The choices of every group, one after the other."""
    return tuple(choice for group in choices().values() for choice in group)


def values_of(config: GenerateConfig) -> list[Any]:
    """What the form shows for `config`, in the order of `all_choices`."""
    return [choice.shown(config) for choice in all_choices()]


def read_values(values: Sequence[Any]) -> dict[str, Any]:
    """The options that a form's values ask for, by name. Raises ConfigError."""
    read = {c.name: c.read(value) for c, value in zip(all_choices(), values, strict=True)}
    return {name: value for name, value in read.items() if value is not None}


def place_of(name: str) -> tuple[str, ...] | None:
    """The parts of a config's document in which a choice stands; None for what is no choice."""
    return next((choice.place for choice in all_choices() if choice.name == name), None)


def _parts(kind: type, *place: str) -> dict[tuple[str, ...], tuple[Choice, ...]]:
    """The choices of a class of options, and of those that stand in it, by their place."""
    hints, texts = typing.get_type_hints(kind), help_texts(kind)
    found, nested = [], {}
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        if name in NOT_OFFERED:
            continue
        if dataclasses.is_dataclass(hint):
            nested |= _parts(typing.cast(type, hint), *place, name)
            continue
        label = LABELS.get(name, name.replace("_", " ").capitalize())
        words = get_args(hint) if get_origin(hint) is Literal else ()
        plain = str if words else tuple if get_origin(hint) is tuple else hint
        found.append(
            Choice(
                name=name,
                place=place,
                label=label,
                help=texts[name],
                kind=plain,
                choices=tuple(words),
            )
        )
    return {place: tuple(found), **nested}


@cache
def help_texts(kind: type) -> Mapping[str, str]:
    """What stands below each field of a class of options, which is what `--help` prints."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts
