"""The tab in which a prompt becomes a mesh."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import Any, cast

import gradio as gr

from sds3d.config import PresetName, required_prompt
from sds3d.errors import ConfigError, Sds3dError
from sds3d.jobs.job import Job
from sds3d.jobs.states import ACTIVE, CONTINUABLE, FINISHED, State
from sds3d.presets import PRESETS
from sds3d.preview import PreviewConfig
from sds3d.ui import pieces
from sds3d.ui.command import command_line
from sds3d.ui.desk import Desk, Wish
from sds3d.ui.teacher_preview import draw

EXAMPLES = (
    "a red mushroom",
    "a yellow duck",
    "a blue chair with white legs",
    "a green rocket",
    "an orange car",
    "a pink mug",
)
REFRESH_SECONDS = 1.5
MORE_STEPS = 200
NOTHING_YET = "The object appears here while it grows, from four sides."
FROM_ADDRESS = "(job, seen) => [new URLSearchParams(location.search).get('job') || '', seen]"
TO_ADDRESS = """(job) => {
  const here = new URL(location);
  if (job) here.searchParams.set('job', job); else here.searchParams.delete('job');
  history.replaceState(null, '', here);
}"""

Seen = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that the page shows of a job; plain values, so that a change is noticed."""

    status: str = ""
    picture: str = field(default_factory=lambda: pieces.waiting_picture(NOTHING_YET))
    plots: str = ""
    has_result: bool = False
    model: str | None = None
    report: str = ""
    downloads: str = ""
    command: str = ""
    can_stop: bool = False
    can_continue: bool = False
    is_done: bool = False
    is_live: bool = False


def look(desk: Desk, job: Job) -> Look:
    """How a job stands now."""
    service = desk.service
    reading = desk.watching.look(job)
    result = service.result(job)
    ahead = service.place_in_queue(job) if job.state is State.QUEUED else 0
    shown: dict[str, Any] = {
        "status": pieces.status(job, reading, result=result, ahead=ahead, trouble=desk.trouble()),
        "plots": f'<div class="plots">{pieces.plots(job, reading)}</div>',
        "can_stop": job.state is State.QUEUED or job.state in ACTIVE,
        "can_continue": job.state in CONTINUABLE,
        "is_done": job.state is State.DONE,
        "is_live": job.state not in FINISHED,
    }
    try:
        shown["command"] = command_line(job.options)
    except Sds3dError:
        shown["command"] = ""
    if result is not None:
        model = desk.copy(job, "mesh.glb")
        shown |= {
            "has_result": True,
            "picture": "",
            "model": None if model is None else str(model),
            "report": pieces.report(job, result),
            "downloads": pieces.downloads(job, result),
        }
        return Look(**shown)
    picture = service.picture(job)
    if picture is not None:
        shown["picture"] = pieces.growing(job, picture.stat().st_mtime_ns)
    elif job.state in FINISHED:
        shown["picture"] = ""
    return Look(**shown)


class TextTo3D:
    """The tab's handlers, and what they are bound to by `build`."""

    def __init__(self, desk: Desk, teachers: list[str], *, any_teacher: bool) -> None:
        self.desk = desk
        self.teachers = teachers
        self.any_teacher = any_teacher

    # --- what happens -------------------------------------------------------------------------

    def refresh(self, job_id: str, seen: Seen | None) -> list[Any]:
        """The outputs of `build` that changed since `seen`, and what is seen now."""
        try:
            shown = look(self.desk, self.desk.service.get(job_id)) if job_id else Look()
        except Sds3dError as error:
            shown = Look(status=pieces.notice(str(error)))
        return self._changes(shown, seen or {})

    def attach(self, job_id: str, seen: Seen | None) -> list[Any]:
        """The page of a job that an address names: its form too."""
        form: list[Any] = [gr.skip()] * 5
        try:
            if job_id:
                config = self.desk.service.get(job_id).config
                names = ("prompt", "negative_prompt", "seed", "preset", "teacher")
                form = [config[name] for name in names]
        except Sds3dError as error:
            return ["", pieces.notice(str(error)), *form, *self.refresh("", {})]
        return [job_id, "", *form, *self.refresh(job_id, {})]

    def generate(self, job_id: str, seen: Seen | None, *form: Any) -> list[Any]:
        """Queue what the form asks for."""
        try:
            job = self.desk.service.submit(wish_of_form(*form).config())
        except Sds3dError as error:
            return [job_id, pieces.notice(str(error)), *self.refresh(job_id, seen)]
        return [job.id, "", *self.refresh(job.id, seen)]

    def act(
        self, what: str, job_id: str, seen: Seen | None, more: float | None = None
    ) -> list[Any]:
        """Stop, cancel or continue the job."""
        service, said = self.desk.service, ""
        try:
            if what == "stop":
                service.stop(job_id)
            elif what == "cancel":
                service.cancel(job_id)
            else:
                done = service.get(job_id).state is State.DONE
                service.continue_(job_id, _whole("more steps", more) or 0 if done else 0)
        except Sds3dError as error:
            said = pieces.notice(str(error))
        return [said, *self.refresh(job_id, seen)]

    def preview(self, prompt: str, negative: str, seed: float, teacher: str, scale: float) -> str:
        """The teacher's own pictures of the prompt."""
        try:
            config = PreviewConfig(
                prompt=required_prompt(prompt),
                negative_prompt=negative,
                seed=_whole("seed", seed) or 0,
                teacher=self._known_teacher(teacher),
                guidance_scale=scale,
            )
            return draw(self.desk.processes, config)
        except Sds3dError as error:
            return pieces.notice(str(error))

    def _known_teacher(self, teacher: str) -> str:
        if not self.any_teacher and teacher not in self.teachers:
            raise ConfigError(f"the teacher is {teacher[:80]!r}: give one of {self.teachers}")
        return teacher

    def _changes(self, shown: Look, seen: Seen) -> list[Any]:
        if shown.has_result and not seen.get("has_result"):
            # Gradio's viewer misses a mesh that comes while it is being put into the page: the
            # place first, the mesh at the next tick.
            shown = dataclasses.replace(shown, model=None, is_live=True)
        now = vars(shown)
        updates: dict[str, Any] = {
            "status": shown.status,
            "picture": gr.update(value=shown.picture, visible=bool(shown.picture)),
            "plots": gr.update(value=shown.plots, visible="<svg" in shown.plots),
            "has_result": gr.update(visible=shown.has_result),
            "model": gr.update(value=shown.model),
            "report": shown.report,
            "downloads": shown.downloads,
            "command": gr.update(value=shown.command, visible=bool(shown.command)),
            "can_stop": gr.update(visible=shown.can_stop),
            "can_continue": gr.update(visible=shown.can_continue),
            "is_done": gr.update(visible=shown.is_done),
            "is_live": gr.update(active=shown.is_live),
        }
        changed = {name for name in now if name not in seen or seen[name] != now[name]}
        outputs = [update if name in changed else gr.skip() for name, update in updates.items()]
        # Two buttons hang on whether there is something to end.
        outputs.insert(8, updates["can_stop"] if "can_stop" in changed else gr.skip())
        return [*outputs, dict(now)]

    # --- how it looks -------------------------------------------------------------------------

    def build(self, demo: gr.Blocks) -> None:
        """Make the tab's components and bind them."""
        self.job = gr.Textbox(visible=False, elem_id="job")
        self.seen = gr.State({})
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                self._build_form()
            with gr.Column(scale=7, min_width=320):
                self._build_view()
        self._bind(demo)

    def _build_form(self) -> None:
        self.prompt = gr.Textbox(
            label="What shall it be?",
            placeholder="a red mushroom",
            lines=2,
            max_lines=4,
            autofocus=True,
            elem_id="prompt",
        )
        with gr.Row(elem_classes="chips"):
            self.chips = [gr.Button(text, size="sm") for text in EXAMPLES]
        self.negative = gr.Textbox(label="What shall it not be?", placeholder="(optional)")
        self.preset = gr.Radio(list(PRESETS), value="fast", label="Preset")
        with gr.Row(elem_classes="bottom"):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
            self.randomize = gr.Button("Randomize", min_width=120)
        self.teacher = gr.Dropdown(
            self.teachers,
            value=self.teachers[0],
            label="Teacher",
            info="The diffusion model that judges the object"
            + (", or the folder of one" if self.any_teacher else ""),
            allow_custom_value=self.any_teacher,
        )
        with gr.Accordion("Advanced", open=False):
            gr.Markdown("Method: score distillation sampling (SDS).")
            options = preset_values("fast")
            with gr.Row():
                self.steps = gr.Number(options[0], label="Steps", precision=0, minimum=1)
                self.guidance = gr.Number(options[1], label="Guidance", minimum=0)
            with gr.Row():
                self.resolution = gr.Number(
                    options[2], label="Resolution of the views (px)", precision=0, minimum=8
                )
                self.faces = gr.Number(options[3], label="Most faces", precision=0, minimum=100)
                self.texture = gr.Number(
                    options[4],
                    label="Texture (px)",
                    info="0: vertex colours",
                    precision=0,
                    minimum=0,
                )
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Generate", variant="primary", elem_id="generate")
            self.sketch = gr.Button("2D preview", elem_id="sketch")
        self.notice = gr.HTML(apply_default_css=False)
        self.sketched = gr.HTML(apply_default_css=False)

    def _build_view(self) -> None:
        self.status = gr.HTML(apply_default_css=False, elem_id="status")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop and keep", visible=False, elem_id="stop")
            self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
            self.more = gr.Number(
                MORE_STEPS, label="More steps", precision=0, minimum=1, visible=False
            )
            self.resume = gr.Button("Continue", visible=False, elem_id="continue")
        self.picture = gr.HTML(
            pieces.waiting_picture(NOTHING_YET), apply_default_css=False, elem_id="picture"
        )
        with gr.Column(visible=False) as self.result:
            self.model = gr.Model3D(
                label="The mesh: drag to turn it", height=420, interactive=False, elem_id="model"
            )
            self.downloads = gr.HTML(apply_default_css=False, elem_id="downloads")
            self.report = gr.HTML(apply_default_css=False)
        self.plots = gr.HTML(apply_default_css=False, visible=False)
        self.command = gr.Textbox(
            label="The same on the command line",
            interactive=False,
            buttons=["copy"],
            visible=False,
            elem_id="command",
        )
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)

    @property
    def form(self) -> list[Any]:
        """The inputs of a wish, in the order of `wish_of_form`."""
        return [
            *(self.prompt, self.negative, self.seed, self.preset, self.teacher),
            *(self.steps, self.guidance, self.resolution, self.faces, self.texture),
        ]

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` gives values for."""
        return [
            *(self.status, self.picture, self.plots, self.result, self.model, self.report),
            *(self.downloads, self.command, self.stop, self.cancel, self.resume, self.more),
            *(self.timer, self.seen),
        ]

    def _bind(self, demo: gr.Blocks) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
        }
        view = [self.job, self.seen]
        attached = [self.job, self.notice, *self.form[:5], *self.outputs]
        demo.load(self.attach, view, attached, js=FROM_ADDRESS, **quiet)
        self.timer.tick(self.refresh, view, self.outputs, **quiet)
        gr.on(
            [self.go.click, self.prompt.submit],
            self.generate,
            [*view, *self.form],
            [self.job, self.notice, *self.outputs],
            **quiet,
        )
        self.job.change(None, self.job, None, js=TO_ADDRESS, api_visibility="private")
        for button, what in ((self.stop, "stop"), (self.cancel, "cancel")):
            button.click(_bound(self.act, what), view, [self.notice, *self.outputs], **quiet)
        self.resume.click(
            _bound(self.act, "continue"), [*view, self.more], [self.notice, *self.outputs], **quiet
        )
        for chip in self.chips:
            chip.click(None, chip, self.prompt, js="(text) => text", api_visibility="private")
        self.randomize.click(
            None,
            None,
            self.seed,
            js="() => Math.floor(Math.random() * 2 ** 31)",
            api_visibility="private",
        )
        self.preset.input(preset_values, self.preset, self.form[5:], **quiet)
        self.sketch.click(
            self.preview,
            [self.prompt, self.negative, self.seed, self.teacher, self.guidance],
            self.sketched,
            api_visibility="private",
            show_progress="minimal",
            concurrency_limit=1,
            concurrency_id="teacher-preview",
        )


def preset_values(preset: str) -> list[Any]:
    """The advanced options of a preset: steps, guidance, resolution, faces, texture."""
    chosen = PRESETS[cast(PresetName, preset if preset in PRESETS else "balanced")]
    optimize, mesh = chosen.optimize, chosen.mesh
    return [
        optimize.steps,
        optimize.guidance_scale,
        optimize.resolutions[-1],
        mesh.max_faces,
        mesh.texture_size,
    ]


def wish_of_form(
    prompt: str,
    negative: str,
    seed: float | None,
    preset: str,
    teacher: str,
    steps: float | None,
    guidance: float | None,
    resolution: float | None,
    faces: float | None,
    texture: float | None,
) -> Wish:
    """What the form asks for. Raises ConfigError for numbers that are none."""
    return Wish(
        prompt=prompt or "",
        negative_prompt=negative or "",
        seed=_whole("seed", seed) or 0,
        preset=preset,
        teacher=teacher or "",
        steps=_whole("steps", steps),
        guidance_scale=None if guidance is None else float(guidance),
        resolution=_whole("resolution", resolution),
        max_faces=_whole("most faces", faces),
        texture_size=_whole("texture", texture),
    )


def another_seed() -> int:
    """A seed that was hardly used before."""
    return random.randrange(2**31)


def _whole(name: str, value: float | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or value != value or abs(value) > 2**63:
        raise ConfigError(f"{name} is {value!r}: give a whole number")
    return int(value)


def _bound(act: Any, what: str) -> Any:
    """`act` for one button; gradio counts the parameters, so no functools.partial."""

    def handle(*given: Any) -> Any:
        return act(what, *given)

    return handle
