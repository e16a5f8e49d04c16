"""The tab of what was made."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import gradio as gr

from sds3d.errors import RunError, Sds3dError
from sds3d.jobs.job import Job
from sds3d.jobs.states import FINISHED
from sds3d.ui import pieces
from sds3d.ui.desk import Desk
from sds3d.ui.files import GROWING
from sds3d.ui.text_to_3d import TextTo3D, another_seed

PAGE = 24
TEXT_TAB = "text-to-3d"

ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const { action, job } = button.dataset;
  if (action === 'delete' && !confirm('Delete this object and its files?')) return;
  trigger('click', { action, job });
});
"""


def cards(desk: Desk, search: str, limit: int) -> tuple[str, bool]:
    """The jobs whose prompt holds `search` as HTML, and whether there are more than `limit`."""
    try:
        jobs = desk.service.jobs(search=search.strip()[:200], limit=limit + 1)
    except Sds3dError as error:
        return pieces.notice(str(error)), False
    if not jobs:
        text = "Nothing was made yet." if not search.strip() else "Nothing of that name."
        return f'<p class="notice">{text}</p>', False
    drawn = "".join(_card(desk, job) for job in jobs[:limit])
    return f'<div class="gallery">{drawn}</div>', len(jobs) > limit


def _card(desk: Desk, job: Job) -> str:
    facts = [pieces.STATES[job.state].lower(), f"seed {job.config['seed']}", job.config["preset"]]
    prompt, key = html.escape(job.prompt), html.escape(job.id)
    page = f"/?job={key}"
    actions = f'<a class="button" href="{page}">Open</a>'
    actions += _button("again", key, "Another seed")
    if job.state in FINISHED:
        actions += _button("delete", key, "Delete")
    return (
        f'<article data-job="{key}">{_thumbnail(desk, job, page)}<h4>{prompt}</h4>'
        f"<p>{html.escape(' · '.join(facts))}</p><footer>{actions}</footer></article>"
    )


def _button(action: str, key: str, title: str) -> str:
    return (
        f'<button class="button" type="button" data-action="{action}" data-job="{key}">'
        f"{title}</button>"
    )


def _thumbnail(desk: Desk, job: Job, page: str) -> str:
    alt = html.escape(job.prompt)
    try:
        result = desk.service.result(job)
    except RunError:
        # Of another version, or damaged: one such folder must not hide the others.
        return f'<a class="thumb none" href="{page}">its folder cannot be read</a>'
    if result is not None and "preview.png" in result["files"]:
        kind, name = "sheet4", "preview.png"
    elif desk.service.picture(job) is not None:
        kind, name = "growing4", GROWING
    else:
        return f'<a class="thumb none" href="{page}">no picture</a>'
    source = pieces.url("jobs", job.id, name)
    picture = f'<img src="{source}" alt="{alt}" loading="lazy">'
    return f'<a class="thumb {kind}" href="{page}">{picture}</a>'


class Gallery:
    """The tab's handlers, and what they are bound to by `build`."""

    def __init__(self, desk: Desk, text_to_3d: TextTo3D) -> None:
        self.desk = desk
        self.text_to_3d = text_to_3d

    def show(self, search: str, limit: int) -> list[Any]:
        """The cards, and whether a button offers more."""
        drawn, more = cards(self.desk, search, limit)
        return [drawn, gr.update(visible=more)]

    def more(self, search: str, limit: int) -> list[Any]:
        """The next page below what is shown."""
        return [limit + PAGE, *self.show(search, limit + PAGE)]

    def act(
        self, search: str, limit: int, job_id: str, seen: dict[str, Any] | None, event: gr.EventData
    ) -> list[Any]:
        """What a button of a card asks for: its job comes from the page and may be anything."""
        asked, action = str(event._data.get("job", "")), event._data.get("action")
        tabs, said, current = gr.skip(), "", job_id
        try:
            if action == "delete":
                self.desk.service.delete(asked)
                current = "" if job_id == asked else job_id
            elif action == "again":
                config = self.desk.service.get(asked).options
                optimize = dataclasses.replace(config.optimize, extra_steps=0)
                again = dataclasses.replace(config, seed=another_seed(), optimize=optimize)
                current = self.desk.service.submit(again).id
                tabs = gr.update(selected=TEXT_TAB)
        except Sds3dError as error:
            said = pieces.notice(str(error))
        shown = self.text_to_3d.attach(current, seen if current == job_id else {})
        return [said, tabs, *self.show(search, limit), *shown]

    def build(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Make the tab's components and bind them."""
        with gr.Row():
            self.search = gr.Textbox(label="Search", placeholder="a word of the prompt", scale=4)
        self.limit = gr.State(PAGE)
        self.notice = gr.HTML(apply_default_css=False)
        self.cards = gr.HTML(apply_default_css=False, js_on_load=ON_CLICK, elem_id="gallery")
        self.further = gr.Button("Show more", visible=False)
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
        }
        view, shown = [self.search, self.limit], [self.cards, self.further]
        gr.on([tab.select, self.search.change], self.show, view, shown, **quiet)
        self.further.click(self.more, view, [self.limit, *shown], **quiet)
        text = self.text_to_3d
        self.cards.click(
            self.act,
            [*view, text.job, text.seen],
            [self.notice, tabs, *shown, *text.attached],
            **quiet,
        )
