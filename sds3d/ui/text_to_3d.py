"""The tab in which a prompt becomes a mesh."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import gradio as gr

from sds3d.config import required_prompt
from sds3d.errors import ConfigError, Sds3dError
from sds3d.jobs.states import State
from sds3d.preview import PreviewConfig
from sds3d.teachers import teacher_folder
from sds3d.ui import examples, pieces
from sds3d.ui.desk import Desk, Wish
from sds3d.ui.form import FIELDS, Form, form_of, whole, wish_of_form
from sds3d.ui.look import NOTHING_YET, Look, look, look_at_example
from sds3d.ui.race import Race
from sds3d.ui.teacher_preview import draw

REFRESH_SECONDS = 1.5
MORE_STEPS = 200
FROM_ADDRESS = "(job, seen) => [new URLSearchParams(location.search).get('job') || '', seen]"
# On a phone what was asked for is far below the form.
TO_ADDRESS = """(job) => {
  const here = new URL(location);
  if (job) here.searchParams.set('job', job); else here.searchParams.delete('job');
  history.replaceState(null, '', here);
  if (job && innerWidth < 700) setTimeout(
    () => document.querySelector('#status')?.scrollIntoView({ behavior: 'smooth' }), 300);
}"""

Seen = dict[str, Any]


class TextTo3D:
    """The tab's handlers, and what they are bound to by `build`."""

    def __init__(self, desk: Desk, teachers: list[str], *, any_teacher: bool) -> None:
        self.desk = desk
        self.teachers = teachers
        self.any_teacher = any_teacher
        self.form = Form(teachers, any_teacher=any_teacher)
        self.race = Race(desk, self.attach)

    # --- what happens -------------------------------------------------------------------------

    def refresh(self, job_id: str, seen: Seen | None) -> list[Any]:
        """The outputs of `build` that changed since `seen`, and what is seen now."""
        example = self.desk.example(job_id)
        try:
            if example is not None:
                shown = look_at_example(self.desk, example)
            else:
                shown = look(self.desk, self.desk.service.get(job_id)) if job_id else Look()
        except Sds3dError as error:
            shown = Look(status=pieces.notice(str(error)))
        return self._changes(shown, seen or {})

    def attach(self, job_id: str, seen: Seen | None) -> list[Any]:
        """The page of a job or an example that an address names: its form too."""
        example = self.desk.example(job_id)
        form: list[Any] = [gr.skip()] * FIELDS
        try:
            if example is not None:
                form = form_of(
                    Wish(
                        prompt=example.prompt,
                        seed=example.seed,
                        preset=example.preset,
                        teacher=self.teachers[0],
                    ).config()
                )
            elif job_id:
                form = form_of(self.desk.service.get(job_id).options)
        except Sds3dError as error:
            return ["", pieces.notice(str(error)), *form, *self.refresh("", {})]
        return [job_id, "", *form, *self.refresh(job_id, {})]

    def show_example(self, job_id: str, event: gr.EventData) -> list[Any]:
        """The example of the chip that was clicked; whatever else the page may say is passed by."""
        key = str(event._data.get("example", ""))
        return self.attach(key if self.desk.example(key) is not None else job_id, {})

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
                service.continue_(job_id, whole("more steps", more) or 0 if done else 0)
        except Sds3dError as error:
            said = pieces.notice(str(error))
        return [said, *self.refresh(job_id, seen)]

    def preview(
        self,
        prompt: str,
        negative: str,
        seed: float | None,
        teacher: str | None,
        scale: float | None,
    ) -> str:
        """The teacher's own pictures of the prompt; an empty field is the preview's own default."""
        given: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
        try:
            config = PreviewConfig(
                prompt=required_prompt(prompt or ""),
                negative_prompt=negative or "",
                seed=whole("seed", seed) or 0,
                teacher=self._known_teacher(teacher or ""),
                **given,
            )
            return draw(self.desk.processes, config)
        except Sds3dError as error:
            return pieces.notice(str(error))

    def _known_teacher(self, teacher: str) -> str:
        if not self.any_teacher and teacher not in self.teachers:
            raise ConfigError(f"the teacher is {teacher[:80]!r}: give one of {self.teachers}")
        # The process that draws must not spend its time on a download.
        teacher_folder(teacher, fetch=False)
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
                self.race.build_view()
                self._build_view()
        self._bind(demo)

    def _build_form(self) -> None:
        self.form.build_head()
        # Right below what is typed: seen without scrolling on any screen.
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Generate", variant="primary", elem_id="generate")
            self.sketch = gr.Button("2D preview", elem_id="sketch")
        self.notice = gr.HTML(apply_default_css=False)
        self.sketched = gr.HTML(apply_default_css=False)
        drawn = examples.chips(self.desk.examples)
        self.chips = gr.HTML(
            drawn,
            apply_default_css=False,
            js_on_load=examples.ON_CLICK,
            elem_id="examples",
            visible=bool(drawn),
        )
        self.form.build_rest()
        self.race.build_form()

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
        self.plots = gr.HTML(apply_default_css=False, visible=False, elem_id="plots")
        self.command = gr.Textbox(
            label="The same on the command line",
            interactive=False,
            buttons=["copy"],
            visible=False,
            elem_id="command",
        )
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` gives values for."""
        return [
            *(self.status, self.picture, self.plots, self.result, self.model, self.report),
            *(self.downloads, self.command, self.stop, self.cancel, self.resume, self.more),
            *(self.timer, self.seen),
        ]

    @property
    def attached(self) -> list[Any]:
        """What `attach` gives values for."""
        return [self.job, self.notice, *self.form.inputs, *self.outputs]

    def _bind(self, demo: gr.Blocks) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
        }
        view = [self.job, self.seen]
        demo.load(self.attach, view, self.attached, js=FROM_ADDRESS, **quiet)
        self.timer.tick(self.refresh, view, self.outputs, **quiet)
        gr.on(
            [self.go.click, self.form.prompt.submit],
            self.generate,
            [*view, *self.form.inputs],
            [self.job, self.notice, *self.outputs],
            **quiet,
        )
        self.job.change(None, self.job, None, js=TO_ADDRESS, api_visibility="private")
        for button, what in ((self.stop, "stop"), (self.cancel, "cancel")):
            button.click(_bound(self.act, what), view, [self.notice, *self.outputs], **quiet)
        self.resume.click(
            _bound(self.act, "continue"), [*view, self.more], [self.notice, *self.outputs], **quiet
        )
        self.chips.click(self.show_example, self.job, self.attached, **quiet)
        self.form.bind(quiet)
        self.race.bind(demo, quiet, form=self.form, notice=self.notice, attached=self.attached)
        head = (self.form.prompt, self.form.negative, self.form.seed, self.form.teacher)
        self.sketch.click(
            self.preview,
            [*head, self.form.options["guidance_scale"]],
            self.sketched,
            api_visibility="private",
            show_progress="minimal",
            concurrency_limit=1,
            concurrency_id="teacher-preview",
        )


def another_seed() -> int:
    """A seed that was hardly used before."""
    return random.randrange(2**31)


def _bound(act: Any, what: str) -> Any:
    """`act` for one button; gradio counts the parameters, so no functools.partial."""

    def handle(*given: Any) -> Any:
        return act(what, *given)

    return handle
