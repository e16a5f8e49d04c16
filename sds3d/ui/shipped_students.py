"""The toybox teacher's students that ship with the program, drawn beside their teacher."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import gradio as gr

from sds3d.assets import shipped
from sds3d.config import required_prompt
from sds3d.errors import Sds3dError
from sds3d.preview import PreviewConfig
from sds3d.teachers import EMBEDDED
from sds3d.ui import pieces
from sds3d.ui.processes import Processes
from sds3d.ui.shipped import STUDENTS, shipped_students
from sds3d.ui.taxonomy import Catalogue, card_html
from sds3d.ui.teacher_preview import draw

STEPS = (4, 8, 16, 24)
GUIDANCE = 3.0
NONE_SHIPPED = (
    "No student of the toybox teacher ships with this version. The teacher itself can be asked "
    "for few steps and for many: that is the gap a student closes."
)


class ShippedStudents:
    """The panel's handlers, and what they are bound to by `build`."""

    def __init__(self, catalogue: Catalogue, processes: Processes) -> None:
        self.catalogue = catalogue
        self.processes = processes

    def describe(self) -> str:
        """The students that ship, as their model cards begin, and the methods behind them."""
        found = shipped_students()
        if not found:
            return pieces.notice(NONE_SHIPPED, "status")
        return "".join(self._describe(name) for name in found)

    def _describe(self, name: str) -> str:
        method = self.catalogue.find(STUDENTS[name])
        drawn = "" if method is None else card_html(method)
        text = html.escape(_first_paragraph(shipped(name) / "README.md"))
        return f'<article class="card"><h3>{name}</h3><p>{text}</p></article>{drawn}'

    def compare(self, prompt: str, steps: float, seed: float) -> str:
        """The teacher's pictures of the prompt in many steps and in few, each student's in few."""
        try:
            options: dict[str, Any] = {
                "prompt": required_prompt(prompt),
                "seed": int(seed or 0),
                "guidance_scale": GUIDANCE,
            }
            few, many = int(steps), STEPS[-1]
            asked = [(EMBEDDED, many)] * (few != many)
            asked += [(name, few) for name in (EMBEDDED, *shipped_students())]
            configs = [
                PreviewConfig(teacher=name, sample_steps=taken, **options) for name, taken in asked
            ]
        except (Sds3dError, TypeError, ValueError, OverflowError) as error:
            return pieces.notice(str(error))
        return f'<div class="shipped">{"".join(map(self._draw, configs))}</div>'

    def _draw(self, config: PreviewConfig) -> str:
        name, steps = config.teacher, config.sample_steps
        passes = (
            f"{steps} evaluations: guidance is in its weights"
            if name in STUDENTS
            else f"{2 * steps} evaluations: with the prompt and without it, for guidance"
        )
        title = "Teacher" if name == EMBEDDED else name
        facts = f"<p class=facts>{steps} steps, {passes}</p>"
        try:
            drawn = draw(self.processes, config)
        except Sds3dError as error:
            drawn = pieces.notice(str(error))
        return f"<section class=status><h3>{title}</h3>{facts}{drawn}</section>"

    def build(self) -> None:
        """Make the panel's components and bind them."""
        self.about = gr.HTML(apply_default_css=False)
        with gr.Row():
            self.prompt = gr.Textbox("a red mushroom", label="Prompt", scale=4)
            self.steps = gr.Dropdown(list(STEPS), value=STEPS[1], label="Steps")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        self.go = gr.Button("Draw side by side", variant="primary", elem_id="draw-students")
        self.drawn = gr.HTML(apply_default_css=False)
        self.go.click(
            self.compare,
            [self.prompt, self.steps, self.seed],
            self.drawn,
            api_visibility="private",
            show_progress="minimal",
            concurrency_limit=1,
            concurrency_id="teacher-preview",
        )


def _first_paragraph(path: Path) -> str:
    """Of a model card, after its heading; "" where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
    plain = (p for p in paragraphs if p and not p.startswith(("#", "---", "|")))
    return re.sub(r"[*`]|\s+", lambda m: " " if m[0].isspace() else "", next(plain, ""))
