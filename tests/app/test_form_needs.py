"""What a teacher or a method wants of the other options: the form fills it in and says so."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sds3d.errors import ConfigError
from sds3d.presets import PRESETS
from sds3d.teacher_needs import TeacherNeeds, needs_of
from sds3d.ui.desk import Wish
from sds3d.ui.form import Form, preset_values, wish_of_form
from sds3d.ui.options import all_choices

NAMES = [choice.name for choice in all_choices()]


def _folder(path: Path, kind: str, **configs: Any) -> str:
    """A teacher's folder, as far as it is looked at without being loaded."""
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    for name, config in configs.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def form() -> Form:
    return Form(["toybox", "toybox-guided"], any_teacher=True)


class Page:
    """The values of a page's form, changed as the page would by what the handlers answer."""

    def __init__(self, form: Form, preset: str = "fast") -> None:
        self.form, self.preset, self.teacher = form, preset, "toybox"
        self.values = dict(zip(NAMES, preset_values(preset), strict=True))
        self.filled: dict[str, Any] = {}
        self.said = ""

    def fit(self) -> None:
        """The teacher or the method was chosen anew."""
        given = [self.preset, self.teacher, self.filled, *self.values.values()]
        self.said, self.filled, *fields = self.form.fit(*given)
        # As it goes through the page and back.
        self.filled = json.loads(json.dumps(self.filled))
        for name, field in zip(NAMES, fields, strict=True):
            if field != gr.skip():
                self.values[name] = field

    def choose_preset(self, preset: str) -> None:
        self.preset = preset
        self.teacher, self.said, self.filled, *fields = self.form.choose_preset(preset)
        self.values = dict(zip(NAMES, fields, strict=True))

    @property
    def optimize(self) -> Any:
        values = self.values.values()
        return wish_of_form("a car", "", 1, self.preset, self.teacher, *values).config().optimize


def test_views_that_are_judged_together_are_filled_in_and_taken_back(
    form: Form, tmp_path: Path
) -> None:
    page = Page(form)
    before = dict(page.values)
    page.teacher = _folder(tmp_path / "mvdream", "MVDreamTeacher")
    page.fit()
    assert page.optimize.views_per_step == 4
    assert "judges 4 views" in page.said
    assert "Set for this choice: Views per step 4." in page.said
    assert {name for name in NAMES if page.values[name] != before[name]} == {"views_per_step"}
    page.teacher = "toybox"
    page.fit()
    assert (page.values, page.said) == (before, "")
    # What its user has typed meanwhile stays.
    page.values["views_per_step"] = 3
    page.teacher = str(tmp_path / "mvdream")
    page.fit()
    assert page.values["views_per_step"] == 4
    page.values["views_per_step"] = 8
    page.teacher = "toybox"
    page.fit()
    assert page.values["views_per_step"] == 8


def test_what_a_method_wants_is_filled_in_and_taken_back(form: Form) -> None:
    page = Page(form)
    before = dict(page.values)
    page.values["method"] = "reconstruction"
    with pytest.raises(ConfigError, match="guidance-rescale"):
        _ = page.optimize
    page.fit()
    assert (page.optimize.method, page.optimize.guidance_rescale) == ("reconstruction", 0.5)
    assert "Guidance rescale 0.5" in page.said
    page.values["method"] = before["method"]
    page.fit()
    assert page.values == before
    # A preset that is for the method has it already.
    page.choose_preset("mvdream")
    assert page.optimize == PRESETS["mvdream"].optimize
    assert page.teacher == "mvdream"


def test_a_teacher_with_guidance_built_in_gets_what_it_takes(form: Form) -> None:
    needs = needs_of("toybox-guided")
    assert needs.embedded_scales is not None
    page = Page(form)
    page.values |= {"guidance_scale": 100.0, "view_prompts": "interpolated", "perp_neg": True}
    page.teacher = "toybox-guided"
    page.fit()
    assert page.optimize.guidance_scale == needs.embedded_scales[1]
    assert not page.optimize.perp_neg
    assert "no negative prompt" in page.said
    assert "Guidance 7.5" in page.said
    page.teacher = "toybox"
    page.fit()
    assert (page.values["guidance_scale"], page.values["perp_neg"]) == (100.0, True)


def test_what_is_known_of_a_teacher_is_read_without_loading_it(tmp_path: Path) -> None:
    for embeds, said in ((True, "embedded guidance"), (False, "")):
        path = tmp_path / f"flux-{embeds}"
        name = _folder(path, "FluxPipeline", transformer={"guidance_embeds": embeds})
        assert needs_of(name).takes_guidance is embeds
        assert said in needs_of(name).text
    for name in ("toybox", "nothing", str(tmp_path)):
        assert needs_of(name) == TeacherNeeds()
        assert needs_of(name).text == ""
    damaged = _folder(tmp_path / "guided", "GuidedToyboxTeacher")
    assert needs_of(damaged) == TeacherNeeds()


def test_fields_that_hold_no_value_and_teachers_of_elsewhere_are_left_alone(
    tmp_path: Path,
) -> None:
    page = Page(Form(["toybox"], any_teacher=False))
    before = dict(page.values)
    page.teacher = _folder(tmp_path / "mvdream", "MVDreamTeacher")
    page.fit()
    assert (page.values, page.said) == (before, "")
    page.form.any_teacher = True
    page.values["steps"] = "many"
    page.fit()
    assert page.values == before | {"steps": "many"}
    assert "judges 4 views" in page.said
    # An empty field is a default: the teacher's, where it has one.
    empty = {"steps": None, "views_per_step": None, "timestep_max": ""}
    page.values |= empty
    page.fit()
    assert page.values == before | empty
    assert page.optimize.views_per_step == 4


def test_a_request_gets_the_same_as_defaults(tmp_path: Path) -> None:
    """As on the command line, what is asked for wins."""
    mvdream = _folder(tmp_path / "mvdream", "MVDreamTeacher")
    wish = Wish(prompt="a car", teacher=mvdream, options={"method": "reconstruction"})
    options = wish.config().optimize
    assert (options.views_per_step, options.guidance_rescale) == (4, 0.5)
    asked = {"method": "reconstruction", "guidance_rescale": 0.7, "views_per_step": 2}
    options = Wish(prompt="a car", teacher=mvdream, options=asked).config().optimize
    assert (options.views_per_step, options.guidance_rescale) == (2, 0.7)
