"""The tab in which students are distilled and compared."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from sds3d.distill.run import DistillConfig
from sds3d.errors import ConfigError, Sds3dError
from sds3d.progress import eta_text
from sds3d.ui import pieces
from sds3d.ui.plots import line_plot
from sds3d.ui.taxonomy import ANY, GROUNDS, Catalogue, card_html, titles
from sds3d.ui.trainings import Training, Trainings

REFRESH_SECONDS = 1.0
FIRST, SECOND = "meanflow", "consistency"
NONE = "(none)"
STEPS = 2000
FIGURES = {
    "sliced_wasserstein": "Distance to the data (sliced Wasserstein)",
    "to_teacher": "Distance to the teacher's samples",
    "mmd": "Distance to the data (MMD)",
    "mode_weight_error": "Largest error of a mode's weight",
    "frechet": "Fréchet distance of the classifier's features",
    "training_seconds": "Training, seconds",
}


class Distillation:
    """The tab's handlers, and what they are bound to by `build`."""

    def __init__(self, catalogue: Catalogue, trainings: Trainings) -> None:
        self.catalogue = catalogue
        self.trainings = trainings

    # --- what happens -------------------------------------------------------------------------

    def open(self, family: str, student: str, ground: str, first: str, second: str) -> list[Any]:
        """The choices, once the catalogue is there; what is chosen stays where it can."""
        families = gr.update(choices=[ANY, *self.catalogue.families()])
        students = gr.update(choices=[ANY, *self.catalogue.students()])
        return [families, students, *self.choose(family, student, ground, first, second)]

    def choose(self, family: str, student: str, ground: str, first: str, second: str) -> list[Any]:
        """The methods that family, kind of student and ground leave, and their cards."""
        chosen = self.catalogue.chosen(family, student, GROUNDS.get(ground, "mixture"))
        names = [card["name"] for card in chosen]
        if first not in names:
            first = FIRST if FIRST in names else (names[0] if names else "")
        if second not in names:
            second = NONE
        return [
            gr.update(choices=titles(chosen), value=first or None),
            gr.update(choices=[(NONE, NONE), *titles(chosen)], value=second),
            *self.cards(first, second),
        ]

    def cards(self, first: str | None, second: str | None) -> list[Any]:
        """The cards of the two methods, and the numbers of evaluations that both are meant for."""
        found = [self.catalogue.find(name or "") for name in (first, second)]
        numbers = [set(card["nfe"]) for card in found if card is not None]
        shared = sorted(set.intersection(*numbers)) if numbers else [1]
        if shared:
            nfe = gr.update(choices=shared, value=shared[0])
        else:
            nfe = gr.update(choices=sorted(set.union(*numbers)))
        return [card_html(found[0]), card_html(found[1]), nfe]

    def train(
        self,
        ground: str,
        first: str | None,
        second: str | None,
        nfe: float | None,
        steps: float | None,
        seed: float | None,
    ) -> list[Any]:
        """Begin to train what is chosen; what is there already is shown at once."""
        keys: list[str] = []
        said = ""
        names = dict.fromkeys(name for name in (first, second) if name and name != NONE)
        try:
            keys.extend(self._submit(name, ground, nfe, steps, seed).key for name in names)
        except Sds3dError as error:
            said = pieces.notice(str(error))
        return [said, keys, *self.refresh(keys)]

    def _submit(
        self, name: str, ground: str, nfe: float | None, steps: float | None, seed: float | None
    ) -> Training:
        if self.catalogue.find(name) is None:
            raise ConfigError(f"there is no method {name[:40]!r}")
        if ground not in GROUNDS:
            raise ConfigError(f"the ground is {ground[:40]!r}: give one of {', '.join(GROUNDS)}")
        config = DistillConfig(
            method=name,
            teacher=GROUNDS[ground],
            steps=_whole("steps", steps, STEPS),
            nfe=_whole("evaluations", nfe, 1),
            seed=_whole("seed", seed, 0),
            out=self.trainings.out,
        )
        return self.trainings.submit(config)

    def stop(self, keys: list[str]) -> list[Any]:
        """Stop the trainings that are shown; they go on from there when asked for again."""
        for key in keys:
            training = self.trainings.get(key)
            if training is not None:
                training.stop.set()
        return self.refresh(keys)

    def refresh(self, keys: list[str]) -> list[Any]:
        """The students side by side, and whether anything still moves."""
        shown = [t for t in map(self.trainings.get, keys) if t is not None]
        live = any(training.state in ("waiting", "training") for training in shown)
        columns = "".join(self._student(training) for training in shown)
        table = self._comparison(shown)
        return [
            f'<div class="students">{columns}</div>{table}',
            gr.update(active=live),
            gr.update(visible=live),
        ]

    # --- pieces -------------------------------------------------------------------------------

    def _title(self, training: Training) -> str:
        card = self.catalogue.find(training.config.method)
        return training.config.method if card is None else str(card["title"])

    def _student(self, training: Training) -> str:
        config = training.config
        title = html.escape(f"{self._title(training)}, {_evaluations(config.nfe)}")
        parts = [f"<h3>{title}</h3>"]
        if training.state in ("waiting", "training"):
            share = training.step / config.steps
            left = (
                "" if training.eta_seconds is None else f" · {eta_text(training.eta_seconds)} left"
            )
            fact = f"step {training.step} of {config.steps}{left}"
            if training.state == "waiting":
                fact = "waiting for the one before it"
            parts.append(f'<progress value="{share:.3f}" max="1">{share:.0%}</progress>')
            parts.append(f"<p class=facts>{html.escape(fact)}</p>")
        if training.state == "failed":
            parts.append(pieces.notice(training.reason))
        if training.state != "done":
            parts.append(line_plot("Loss", training.losses, steps=config.steps))
        else:
            for name, text in (("samples.png", "samples"), ("history.png", "losses by step")):
                source = pieces.url("students", training.key, name)
                parts.append(f'<img src="{source}" alt="{text} of {title}">')
            source = pieces.url("students", training.key, "student.safetensors")
            parts.append(
                f'<nav class="downloads"><a href="{source}?download" download>Weights</a></nav>'
            )
        return f'<section class="status {training.state}">{"".join(parts)}</section>'

    def _comparison(self, shown: list[Training]) -> str:
        cards = {training.key: self.trainings.card(training) for training in shown}
        measured = {key: card["measured"] for key, card in cards.items() if card is not None}
        done = [t for t in shown if t.state == "done" and t.key in measured]
        if not done:
            return ""
        head = "".join(f"<th scope=col>{html.escape(self._title(t))}</th>" for t in done)
        rows = "".join(
            _row(title, [measured[t.key].get(name) for t in done])
            for name, title in FIGURES.items()
            if any(isinstance(measured[t.key].get(name), (int, float)) for t in done)
        )
        return (
            f'<table class="statistics"><thead><tr><th scope=col>Less is better</th>{head}</tr>'
            f"</thead><tbody>{rows}</tbody></table>"
        )

    # --- how it looks -------------------------------------------------------------------------

    def build(self, tab: gr.Tab) -> None:
        """Make the tab's components and bind them."""
        gr.Markdown(
            "A student learns to sample in a few evaluations what its teacher samples in many. "
            "Choose by what is learnt and by what the student is; train one or two; compare them "
            "at the same number of evaluations."
        )
        with gr.Row():
            self.family = gr.Dropdown([ANY], value=ANY, label="Family")
            self.student = gr.Dropdown([ANY], value=ANY, label="Student")
            self.ground = gr.Dropdown(list(GROUNDS), value=next(iter(GROUNDS)), label="Ground")
        with gr.Row():
            self.first = gr.Dropdown([], label="Method", elem_id="method")
            self.second = gr.Dropdown([NONE], value=NONE, label="Compare with")
        with gr.Row():
            self.first_card, self.second_card = (
                gr.HTML(apply_default_css=False, min_width=300),
                gr.HTML(apply_default_css=False, min_width=300),
            )
        with gr.Row():
            self.nfe = gr.Dropdown(
                [1], value=1, label="Evaluations per sample (NFE)", allow_custom_value=True
            )
            self.steps = gr.Number(STEPS, label="Training steps", precision=0, minimum=1)
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Train", variant="primary", elem_id="train")
            self.end = gr.Button("Stop", visible=False)
        self.notice = gr.HTML(apply_default_css=False)
        self.shown = gr.HTML(apply_default_css=False, elem_id="students")
        self.keys = gr.State([])
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        self._bind(tab)

    def _bind(self, tab: gr.Tab) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
        }
        choice = [self.family, self.student, self.ground, self.first, self.second]
        cards = [self.first_card, self.second_card, self.nfe]
        methods = [self.first, self.second, *cards]
        tab.select(self.open, choice, [self.family, self.student, *methods], **quiet)
        for narrowing in choice[:3]:
            narrowing.input(self.choose, choice, methods, **quiet)
        for method in (self.first, self.second):
            method.input(self.cards, [self.first, self.second], cards, **quiet)
        outputs = [self.shown, self.timer, self.end]
        self.go.click(
            self.train,
            [self.ground, self.first, self.second, self.nfe, self.steps, self.seed],
            [self.notice, self.keys, *outputs],
            **quiet,
        )
        self.end.click(self.stop, self.keys, outputs, **quiet)
        self.timer.tick(self.refresh, self.keys, outputs, **quiet)


def _row(title: str, values: list[Any]) -> str:
    numbers = [value for value in values if isinstance(value, (int, float))]
    best = min(numbers) if len(numbers) > 1 else None
    cells = "".join(
        f"<td{' class=best' if value == best else ''}>{value:.4g}</td>"
        if isinstance(value, (int, float))
        else "<td></td>"
        for value in values
    )
    return f"<tr><th scope=row>{html.escape(title)}</th>{cells}</tr>"


def _evaluations(nfe: int) -> str:
    return "1 evaluation" if nfe == 1 else f"{nfe} evaluations"


def _whole(name: str, value: object, default: int) -> int:
    if value is None:
        return default
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is {str(value)[:40]!r}: give a whole number") from error
