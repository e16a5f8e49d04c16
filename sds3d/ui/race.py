"""A race of seeds on the page: short runs side by side, and the best of them taken to its end."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sds3d.errors import Sds3dError
from sds3d.jobs.errors import UnknownJob
from sds3d.jobs.job import Job
from sds3d.jobs.race import (
    LEAST_RUNNERS,
    MOST_RUNNERS,
    compare,
    continue_winner,
    end_race,
    start_race,
)
from sds3d.jobs.states import ACTIVE, FINISHED, State
from sds3d.ui import pieces
from sds3d.ui.desk import Desk
from sds3d.ui.form import Form, whole, wish_of_form
from sds3d.ui.plots import line_plot

REFRESH_SECONDS = 1.5
RUNNERS, STEPS = 3, 100
STEP_OF_STEPS = 50
"""The agreement is measured after every so many steps, so a race is as long as one of these."""

SEPARATOR = "."
"""Between the ids of the jobs in an address; in none of them."""

FROM_ADDRESS = "(race, seen) => [new URLSearchParams(location.search).get('race') || '', seen]"
TO_ADDRESS = """(race) => {
  const here = new URL(location);
  if (race) here.searchParams.set('race', race); else here.searchParams.delete('race');
  history.replaceState(null, '', here);
  if (race && innerWidth < 700) setTimeout(
    () => document.querySelector('#race-view')?.scrollIntoView({ behavior: 'smooth' }), 300);
}"""

Seen = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Everything that the page shows of a race; plain values, so that a change is noticed."""

    is_on: bool = False
    cards: str = ""
    runners: tuple[tuple[str, str], ...] = ()
    best: str | None = None
    is_over: bool = False


def standing(desk: Desk, job_ids: list[str]) -> Standing:
    """How these jobs stand against each other, those that were deleted left out.

    Raises UnknownJob where all of them were.
    """
    if not job_ids:
        return Standing()
    jobs: list[Job] = []
    for job_id in job_ids:
        with contextlib.suppress(UnknownJob):
            jobs.append(desk.service.get(job_id))
    if not jobs:
        raise UnknownJob(job_ids[0])
    readings = [desk.watching.look(job) for job in jobs]
    figures = compare([reading.agreement for reading in readings])
    best = _best(jobs, figures)
    cards = "".join(
        _card(desk, job, figure, is_best=job is best)
        for job, figure in zip(jobs, figures, strict=True)
    )
    curves = {_seed(j): reading.agreement for j, reading in zip(jobs, readings, strict=True)}
    steps = max(job.pause_at or job.step for job in jobs)
    plot = line_plot("Agreement with the teacher", curves, steps=steps, note="lower is better")
    return Standing(
        is_on=True,
        cards=f'<div class="race">{cards}</div><div class="plots">{plot}</div>',
        runners=tuple((_title(j, f), j.id) for j, f in zip(jobs, figures, strict=True)),
        best=None if best is None else best.id,
        is_over=all(job.state in FINISHED for job in jobs),
    )


def _best(jobs: list[Job], figures: list[float | None]) -> Job | None:
    measured = [(figure, i) for i, figure in enumerate(figures) if figure is not None]
    return jobs[min(measured)[1]] if measured else None


def _seed(job: Job) -> str:
    return f"seed {job.config['seed']}"


def _title(job: Job, figure: float | None) -> str:
    return _seed(job) if figure is None else f"{_seed(job)}: {figure:.4f}"


def _card(desk: Desk, job: Job, figure: float | None, *, is_best: bool) -> str:
    waiting = "waits for its turn" if job.state is State.QUEUED else "no picture"
    picture = pieces.growing(job, desk.service.picture(job)) or pieces.waiting_picture(waiting)
    goal = job.pause_at or job.steps
    facts = [f"step {job.step} of {goal}"]
    if figure is not None:
        facts.append(f"agreement {figure:.4f}")
    if is_best:
        facts.append("the best so far" if job.state not in FINISHED else "the best")
    bar = f'<progress value="{min(1.0, job.step / max(1, goal)):.4f}" max="1"></progress>'
    failed = pieces.notice(job.reason or "", "error") if job.state is State.FAILED else ""
    state = "Ready" if job.state is State.STOPPED else pieces.STATES[job.state]
    return (
        f'<article class="status {job.state}{" best" if is_best else ""}" data-job="{job.id}">'
        f"<h3><span class=state>{state}</span> {html.escape(_seed(job))}</h3>{picture}"
        f"{bar if job.state in ACTIVE else ''}"
        f"<p class=facts>{html.escape(' · '.join(facts))}</p>{failed}</article>"
    )


class Race:
    """The race's handlers, and what they are bound to; `attach` shows a job on the page."""

    def __init__(self, desk: Desk, attach: Callable[[str, Seen | None], list[Any]]) -> None:
        self.desk = desk
        self._attach = attach

    # --- what happens -------------------------------------------------------------------------

    def refresh(self, race: str, seen: Seen | None) -> list[Any]:
        """The outputs that changed since `seen`, and what is seen now."""
        return self._changes(standing(self.desk, _ids(race)), seen or {})

    def load(self, race: str, seen: Seen | None) -> list[Any]:
        """The race that an address names: what changed since `seen`, nothing on a new page."""
        try:
            return [race, gr.skip(), *self.refresh(race, seen)]
        except Sds3dError as error:
            return ["", pieces.notice(str(error)), *self.refresh("", {})]

    def start(self, race: str, seen: Seen | None, runners: Any, steps: Any, *form: Any) -> Any:
        """Begin a race from the form's seed on."""
        try:
            jobs = start_race(
                self.desk.service,
                wish_of_form(*form).config(),
                runners=whole("seeds", runners) or 0,
                steps=whole("steps of each", steps) or 0,
            )
        except Sds3dError as error:
            race, view = self._as_it_is(race, seen)
            return [race, pieces.notice(str(error)), *view]
        race = SEPARATOR.join(job.id for job in jobs)
        return [race, "", *self.refresh(race, {})]

    def go_on(self, race: str, seen: Seen | None, picked: str | None) -> list[Any]:
        """Take the pick to its end and show it; the race is over with that."""
        if picked not in _ids(race):
            return self._stay(race, seen, "choose which of them shall go on")
        try:
            continue_winner(self.desk.service, picked)
        except Sds3dError as error:
            return self._stay(race, seen, str(error))
        return ["", *self.refresh("", {}), *self._attach(picked, {})]

    def _stay(self, race: str, seen: Seen | None, text: str) -> list[Any]:
        """The outputs of `go_on` where nothing goes on: of `attach` the notice alone."""
        others = [gr.skip()] * (len(self._attach("", {})) - 2)
        race, view = self._as_it_is(race, seen)
        return [race, *view, gr.skip(), pieces.notice(text), *others]

    def _as_it_is(self, race: str, seen: Seen | None) -> tuple[str, list[Any]]:
        """The race and what changed; none where all of it was deleted meanwhile."""
        try:
            return race, self.refresh(race, seen)
        except UnknownJob:
            return "", self.refresh("", {})

    def end(self, race: str) -> list[Any]:
        """Cancel who has not finished, and clear the page of the race."""
        try:
            end_race(self.desk.service, _ids(race))
        except Sds3dError as error:
            race, view = self._as_it_is(race, {})
            return [race, pieces.notice(str(error)), *view]
        return ["", "", *self.refresh("", {})]

    def _changes(self, shown: Standing, seen: Seen) -> list[Any]:
        now = vars(shown)
        changed = {name for name in now if name not in seen or seen[name] != now[name]}
        pick: Any = gr.skip()
        if changed & {"is_over", "is_on"} or (shown.is_over and "runners" in changed):
            # Chosen for the user once, when all is known; afterwards the choice is theirs.
            pick = gr.update(choices=list(shown.runners), value=shown.best, visible=shown.is_over)
        return [
            gr.update(visible=shown.is_on) if "is_on" in changed else gr.skip(),
            shown.cards if "cards" in changed else gr.skip(),
            pick,
            gr.update(visible=shown.is_over) if "is_over" in changed else gr.skip(),
            gr.update(value="Close" if shown.is_over else "Cancel the race")
            if "is_over" in changed
            else gr.skip(),
            gr.update(active=shown.is_on and not shown.is_over),
            dict(now),
        ]

    # --- how it looks -------------------------------------------------------------------------

    def build_form(self) -> None:
        """What a race is asked for with."""
        with gr.Accordion("Seed race", open=False, elem_id="seed-race"):
            gr.Markdown(
                "The first steps of several seeds side by side; the best goes on to the end.",
                elem_classes="lead",
            )
            with gr.Row(elem_classes="options"):
                self.runners = gr.Slider(
                    LEAST_RUNNERS, MOST_RUNNERS, RUNNERS, step=1, label="Seeds", min_width=150
                )
                self.steps = gr.Slider(
                    STEP_OF_STEPS,
                    10 * STEP_OF_STEPS,
                    STEPS,
                    step=STEP_OF_STEPS,
                    label="Steps of each",
                    min_width=150,
                )
            self.begin = gr.Button("Race", elem_id="race")

    def build_view(self) -> None:
        """Where it is seen."""
        self.race = gr.Textbox(visible=False)
        self.seen = gr.State({})
        with gr.Column(visible=False, elem_id="race-view") as self.panel:
            self.cards = gr.HTML(apply_default_css=False)
            self.pick = gr.Radio([], label="Which shall go on?", visible=False, elem_id="race-pick")
            with gr.Row(elem_classes="actions"):
                self.onward = gr.Button(
                    "Continue it", variant="primary", visible=False, elem_id="race-continue"
                )
                self.close = gr.Button("Cancel the race", elem_id="race-end")
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)

    def bind(
        self, demo: gr.Blocks, quiet: dict[str, Any], *, form: Form, notice: Any, attached: Any
    ) -> None:
        """Bind the components; `attached` are the outputs of `attach`."""
        view = [self.race, self.seen]
        outputs = [self.panel, self.cards, self.pick, self.onward, self.close]
        outputs += [self.timer, self.seen]
        demo.load(self.load, view, [self.race, notice, *outputs], js=FROM_ADDRESS, **quiet)
        self.timer.tick(self.load, view, [self.race, notice, *outputs], **quiet)
        self.race.change(None, self.race, None, js=TO_ADDRESS, api_visibility="private")
        self.begin.click(
            self.start,
            [*view, self.runners, self.steps, *form.inputs],
            [self.race, notice, *outputs],
            **quiet,
        )
        self.onward.click(self.go_on, [*view, self.pick], [self.race, *outputs, *attached], **quiet)
        self.close.click(self.end, self.race, [self.race, notice, *outputs], **quiet)


def _ids(race: str | None) -> list[str]:
    return [part for part in (race or "").split(SEPARATOR) if part][:MOST_RUNNERS]
