"""The form of a run: what shall be made, and every option of the command line beside it."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import gradio as gr

from sds3d.config import GenerateConfig, PresetName
from sds3d.errors import ConfigError, Sds3dError
from sds3d.presets import PRESETS, defaults_of_method, generate_config
from sds3d.teacher_needs import TeacherNeeds, fitted, needs_of
from sds3d.ui import pieces
from sds3d.ui.desk import Wish
from sds3d.ui.options import Choice, all_choices, choices, read_values, values_of

FIRST_PRESET = "fast"
OPEN_GROUP = "Method"
"""The group that is seen as soon as the advanced options are."""


HEAD = ("prompt", "negative_prompt", "seed", "preset", "teacher")
FIELDS = len(HEAD) + len(all_choices())
"""How many inputs the form has."""

_NAMES = tuple(choice.name for choice in all_choices())

Filled = dict[str, tuple[Any, Any]]
"""What the form filled in by itself, by the option's name: the value before, and that."""


class Form:
    """The components of a wish; `inputs` are their values in the order of `wish_of_form`."""

    def __init__(self, teachers: list[str], *, any_teacher: bool) -> None:
        self.teachers = teachers
        self.any_teacher = any_teacher

    def build_head(self) -> None:
        """What every run needs: the prompt."""
        self.prompt = gr.Textbox(
            label="What shall it be?",
            placeholder="a red mushroom",
            lines=2,
            max_lines=4,
            autofocus=True,
            elem_id="prompt",
        )

    def build_rest(self) -> None:
        """Everything that has a default."""
        with gr.Row(elem_classes="bottom"):
            self.preset = gr.Dropdown(
                list(PRESETS), value=FIRST_PRESET, label="Preset", min_width=130, scale=3
            )
            self.seed = gr.Number(
                0, label="Seed", precision=0, minimum=0, min_width=90, scale=2, elem_id="seed"
            )
            self.randomize = gr.Button("Randomize", min_width=110)
        self.negative = gr.Textbox(label="What shall it not be?", placeholder="(optional)")
        self.teacher = gr.Dropdown(
            self.teachers,
            value=self.teachers[0],
            label="Teacher",
            info="The diffusion model that judges the object"
            + (", or the folder of one" if self.any_teacher else ""),
            allow_custom_value=self.any_teacher,
            elem_id="teacher",
        )
        self.wants = gr.HTML(apply_default_css=False, elem_id="wants")
        self.filled = gr.State({})
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._build_options()

    def _build_options(self) -> None:
        values = dict(zip(all_choices(), preset_values(FIRST_PRESET), strict=True))
        self.options: dict[str, Any] = {}
        for title, group in choices().items():
            if title == OPEN_GROUP:
                self._build_group(group, values)
            else:
                with gr.Accordion(title, open=False):
                    self._build_group(group, values)

    def _build_group(self, group: tuple[Choice, ...], values: dict[Choice, Any]) -> None:
        with gr.Row(elem_classes="options"):
            for choice in group:
                self.options[choice.name] = _component(choice, values[choice])

    @property
    def inputs(self) -> list[Any]:
        """The inputs of a wish, in the order of `wish_of_form`."""
        head = (self.prompt, self.negative, self.seed, self.preset, self.teacher)
        return [*head, *self.options.values()]

    def teacher_for(self, preset: str) -> str:
        """The teacher that a preset was made for, where this place has it; else the first."""
        wanted = PRESETS[cast(PresetName, preset)].teacher if preset in PRESETS else ""
        known = self.any_teacher or wanted in self.teachers
        return wanted if wanted and known else self.teachers[0]

    def choose_preset(self, preset: str) -> list[Any]:
        """The preset's teacher and options, and what `fit` makes of them."""
        teacher = self.teacher_for(preset)
        values = dict(zip(_NAMES, preset_values(preset), strict=True))
        said, changed = self._wanted(preset, teacher, values)
        filled = {name: (values[name], value) for name, value in changed.items()}
        return [teacher, said, filled, *(values | changed).values()]

    def fit(self, preset: str, teacher: str | None, filled: Filled, *values: Any) -> list[Any]:
        """What teacher and method want of the other options, said and filled in.

        What was filled in for those that were chosen before, and not changed since, goes back to
        what it was. Where the fields hold what is no value, nothing is filled in.
        """
        now = dict(zip(_NAMES, values, strict=True))
        back = {k: was for k, (was, value) in (filled or {}).items() if now.get(k) == value}
        plain = now | back
        said, changed = self._wanted(preset, teacher or "", plain)
        wanted = plain | changed
        fields = [gr.skip() if wanted[k] == now[k] else wanted[k] for k in _NAMES]
        return [said, {k: (plain[k], value) for k, value in changed.items()}, *fields]

    def _wanted(
        self, preset: str, teacher: str, values: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """What to say, and the values by name that are to be other ones than the form has."""
        # Of another one than may be asked for nothing is looked up.
        teacher = teacher if self.any_teacher or teacher in self.teachers else ""
        needs = needs_of(teacher) if teacher else TeacherNeeds()
        method = values["method"]
        try:
            plain = generate_config(cast(PresetName, preset), prompt="(prompt)")
            own = {} if method == plain.optimize.method else defaults_of_method(method)
            changed = {
                choice.name: own[choice.name]
                for choice in all_choices()
                if choice.name in own and choice.read(values[choice.name]) != own[choice.name]
            }
            form = ("(prompt)", "", 0, preset, teacher, *(values | changed).values())
            config = wish_of_form(*form).config()
            fits = fitted(config.optimize, teacher, needs)
        except Sds3dError:
            return _said(needs, {}), {}
        before, after = values_of(config), values_of(dataclasses.replace(config, optimize=fits))
        pairs = zip(_NAMES, before, after, strict=True)
        changed |= {name: new for name, old, new in pairs if new != old}
        return _said(needs, changed), changed

    def bind(self, quiet: dict[str, Any]) -> None:
        """What happens within the form; `quiet` are gradio's options of a handler."""
        options = list(self.options.values())
        said = [self.wants, self.filled, *options]
        self.preset.input(self.choose_preset, self.preset, [self.teacher, *said], **quiet)
        gr.on(
            [self.teacher.input, self.options["method"].input],
            self.fit,
            [self.preset, self.teacher, self.filled, *options],
            said,
            **quiet,
        )
        self.randomize.click(
            None,
            None,
            self.seed,
            js="() => Math.floor(Math.random() * 2 ** 31)",
            api_visibility="private",
        )


def _said(needs: TeacherNeeds, changed: dict[str, Any]) -> str:
    """What the teacher wants, and which fields are set for it or for the method."""
    said = [needs.text] if needs.text else []
    labels = {choice.name: choice.label for choice in all_choices()}
    if changed:
        changes = (f"{labels[name]} {value}" for name, value in changed.items())
        said.append(f"Set for this choice: {', '.join(changes)}.")
    return pieces.notice(" ".join(said), "info") if said else ""


def _component(choice: Choice, value: Any) -> Any:
    common: dict[str, Any] = {
        "label": choice.label,
        "info": choice.help,
        "elem_id": f"option-{choice.name.replace('_', '-')}",
        "min_width": 150,
    }
    if choice.kind is bool:
        return gr.Checkbox(value, **common)
    if choice.choices:
        return gr.Dropdown(list(choice.choices), value=value, **common)
    if choice.kind in (str, tuple):
        return gr.Textbox(value, **common)
    if choice.kind is int:
        return gr.Number(value, precision=0, **common)
    return gr.Number(value, step=0.01, **common)


def preset_values(preset: str) -> list[Any]:
    """What the form shows for a preset, in the order of `all_choices`."""
    known = cast(PresetName, preset if preset in PRESETS else "balanced")
    return values_of(generate_config(known, prompt="(prompt)"))


def form_of(config: GenerateConfig) -> list[Any]:
    """What the form shows for the options of a run, in the order of `Form.inputs`."""
    return [*(getattr(config, name) for name in HEAD), *values_of(config)]


def wish_of_form(
    prompt: str, negative: str, seed: float | None, preset: str, teacher: str, *options: Any
) -> Wish:
    """What the form asks for. Raises ConfigError for numbers that are none."""
    return Wish(
        prompt=prompt or "",
        negative_prompt=negative or "",
        seed=whole("seed", seed) or 0,
        preset=preset,
        teacher=teacher or "",
        options=read_values(options),
    )


def whole(name: str, value: float | None) -> int | None:
    """A whole number of the form; None for an empty field. Raises ConfigError."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or value != value or abs(value) > 2**63:
        raise ConfigError(f"{name} is {value!r}: give a whole number")
    return int(value)
