"""The tab in which students are distilled, watched and compared."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sds3d.distill.refusals import ground_refusal, nfe_refusal
from sds3d.distill.run import DistillConfig
from sds3d.errors import BadInput, ConfigError, Sds3dError
from sds3d.ui import pieces
from sds3d.ui.shipped_students import ShippedStudents
from sds3d.ui.students import StudentsView
from sds3d.ui.taxonomy import GROUNDS, TOYBOX, Card, Catalogue, cards_html, titles, tree_html
from sds3d.ui.trainings import PICTURE_SECONDS, Training, Trainings

REFRESH_SECONDS = 1.0
MOST = 4
"""Students that are compared at once."""
FIRST = ("meanflow", "cd")
STEPS, BATCH, RATE = 2000, 256, 2e-3

ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-method]');
  if (button) trigger('click', { method: button.dataset.method });
});
"""


class Distillation:
    """The tab's handlers, and what they are bound to by `build`."""

    def __init__(self, catalogue: Catalogue, trainings: Trainings) -> None:
        self.catalogue = catalogue
        self.trainings = trainings
        self.view = StudentsView(catalogue, trainings)
        self.shipped = ShippedStudents(catalogue, trainings.processes)

    # --- choosing -----------------------------------------------------------------------------

    def open(self, ground: str, names: list[str], keys: list[str]) -> list[Any]:
        """The choices, once the catalogue is there, and whatever is in training if nothing is
        shown.
        """
        if not keys:
            live = self.trainings.live()
            keys = [t.key for t in live if _alike(t, live[0])][:MOST]
        choices = gr.update(choices=titles(self.catalogue.cards()))
        shown = self.refresh(keys)[:3]
        return [choices, *self.change(ground, names), self.shipped.describe(), keys, *shown]

    def change(self, ground: str, names: list[str]) -> list[Any]:
        """Another ground: what can be chosen there, and what was made there before."""
        made = self._made(GROUNDS.get(ground, "mixture"))
        return [*self.choose(ground, names), gr.update(choices=made, value=[])]

    def choose(self, ground: str, names: list[str]) -> list[Any]:
        """What the ground and the chosen methods make of the page."""
        name = GROUNDS.get(ground, "mixture")
        if name == TOYBOX:
            return [gr.update(visible=False), gr.update(visible=True), *[gr.skip()] * 4]
        cards = [card for card in map(self.catalogue.find, names) if card is not None]
        return [
            gr.update(visible=True),
            gr.update(visible=False),
            tree_html(self.catalogue.cards(), names, name),
            cards_html(cards),
            _nfe_choices(cards),
            "".join(pieces.notice(text, "warning") for text in _refusals(cards, name)),
        ]

    def pick(self, ground: str, names: list[str], event: gr.EventData) -> list[Any]:
        """A button of the taxonomy: its method comes from the page and may be anything."""
        name = str(event._data.get("method", ""))
        said = ""
        if name in names:
            names = [other for other in names if other != name]
        elif self.catalogue.find(name) is None:
            said = f"there is no method {name[:40]!r}"
        elif len(names) == MOST:
            said = f"{MOST} methods are compared at most: take one away first"
        else:
            names = [*names, name]
        *page, notice = self.choose(ground, names)
        return [names, *page, pieces.notice(said) if said else notice]

    def _made(self, ground: str) -> list[tuple[str, str]]:
        return [(self.view.label(t), t.key) for t in self.trainings.made(ground)]

    # --- training and showing -----------------------------------------------------------------

    def train(
        self,
        ground: str,
        names: list[str],
        nfe: float | None,
        steps: float | None,
        seed: float | None,
        batch: float | None,
        learning_rate: float | None,
    ) -> list[Any]:
        """Train what is chosen, in turn; what is there already is shown at once."""
        keys: list[str] = []
        said: list[str] = []
        if not names:
            said.append("choose one to four methods first")
        for name in names[:MOST]:
            try:
                config = self._config(ground, name, nfe, steps, seed, batch, learning_rate)
                keys.append(self.trainings.submit(config).key)
            except Sds3dError as error:
                said.append(str(error))
        notices = "".join(pieces.notice(text) for text in dict.fromkeys(said))
        return [notices, keys, *self.refresh(keys)]

    def _config(
        self,
        ground: str,
        name: str,
        nfe: float | None,
        steps: float | None,
        seed: float | None,
        batch: float | None,
        learning_rate: float | None,
    ) -> DistillConfig:
        card = self.catalogue.find(name)
        if card is None:
            raise ConfigError(f"there is no method {name[:40]!r}")
        teacher = GROUNDS.get(ground)
        if teacher is None or teacher == TOYBOX:
            raise ConfigError(f"the ground is {ground[:40]!r}: give one on which students train")
        config = DistillConfig(
            method=name,
            teacher=teacher,
            steps=_whole("steps", steps, STEPS),
            nfe=_whole("evaluations", nfe, 1),
            seed=_whole("seed", seed, 0),
            batch=_whole("batch", batch, BATCH),
            learning_rate=RATE if learning_rate is None else learning_rate,
            picture_every=PICTURE_SECONDS,
            out=self.trainings.out,
        )
        refused = ground_refusal(card, teacher) or nfe_refusal(card, config.nfe)
        if refused is not None:
            raise BadInput(refused)
        return config

    def compare(self, keys: list[str]) -> list[Any]:
        """Students made before, side by side. Of other grounds or numbers they are refused."""
        found = [t for t in map(self.trainings.get, keys[:MOST]) if t is not None]
        alike = [t for t in found if _alike(t, found[0])]
        said = ""
        if len(alike) < len(found):
            given = sorted({t.config.nfe for t in found})
            said = (
                "students are compared at the same number of evaluations, and these have "
                f"{' and '.join(map(str, given))}: only the first one's like are shown"
            )
        kept = [t.key for t in alike]
        return [pieces.notice(said, "warning"), kept, *self.refresh(kept)[:3]]

    def stop(self, keys: list[str]) -> list[Any]:
        """Stop the trainings that are shown; they go on from there when asked for again."""
        for training in filter(None, map(self.trainings.get, keys)):
            self.trainings.stop(training)
        return self.refresh(keys)

    def refresh(self, keys: list[str]) -> list[Any]:
        """The students side by side, and whether anything still moves."""
        shown = [t for t in map(self.trainings.get, keys) if t is not None]
        live = any(training.is_live for training in shown)
        made = gr.skip()
        if shown and not live:
            made = gr.update(choices=self._made(shown[0].config.teacher))
        return [self.view.draw(shown), gr.update(active=live), gr.update(visible=live), made]

    # --- how it looks -------------------------------------------------------------------------

    def build(self, tab: gr.Tab) -> None:
        """Make the tab's components and bind them."""
        gr.Markdown(
            "A student learns to sample in a few evaluations what its teacher samples in many. "
            "Choose a ground, then up to four methods by family and by kind of student; watch "
            "them learn; compare them at the same number of evaluations."
        )
        self.ground = gr.Radio(
            list(GROUNDS), value=next(iter(GROUNDS)), label="Ground", elem_id="ground"
        )
        with gr.Column(visible=False) as self.shipped_panel:
            self.shipped.build()
        with gr.Column() as self.live_panel:
            self._build_choice()
            self.notice = gr.HTML(apply_default_css=False, elem_id="distill-notice")
            with gr.Row(elem_classes="actions"):
                self.go = gr.Button("Train", variant="primary", elem_id="train")
                self.end = gr.Button("Stop", visible=False, elem_id="stop-training")
            self.made = gr.Dropdown(
                [],
                multiselect=True,
                max_choices=MOST,
                label="Or compare students made before",
                elem_id="made",
            )
            self.shown = gr.HTML(apply_default_css=False, elem_id="students")
        self.keys = gr.State([])
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        self._bind(tab)

    def _build_choice(self) -> None:
        self.tree = gr.HTML(apply_default_css=False, js_on_load=ON_CLICK, elem_id="taxonomy")
        self.methods = gr.Dropdown(
            [(name, name) for name in FIRST],
            value=list(FIRST),
            multiselect=True,
            max_choices=MOST,
            label="Methods",
            elem_id="methods",
        )
        self.cards = gr.HTML(apply_default_css=False)
        with gr.Row():
            self.nfe = gr.Dropdown(
                [1], value=1, label="Evaluations per sample (NFE)", allow_custom_value=True
            )
            self.steps = gr.Number(STEPS, label="Training steps", precision=0, minimum=1)
            self.seed = gr.Number(0, label="Training seed", precision=0, minimum=0)
        with gr.Accordion("Advanced", open=False), gr.Row():
            self.batch = gr.Number(BATCH, label="Samples in a step", precision=0, minimum=2)
            self.rate = gr.Number(RATE, label="Learning rate", minimum=1e-6, step=1e-4)

    def _bind(self, tab: gr.Tab) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
        }
        page = [
            self.live_panel, self.shipped_panel, self.tree, self.cards, self.nfe, self.notice,
        ]  # fmt: skip
        chosen = [self.ground, self.methods]
        outputs = [self.shown, self.timer, self.end]
        tab.select(
            self.open,
            [*chosen, self.keys],
            [self.methods, *page, self.made, self.shipped.about, self.keys, *outputs],
            **quiet,
        )
        self.ground.input(self.change, chosen, [*page, self.made], **quiet)
        self.methods.input(self.choose, chosen, page, **quiet)
        self.tree.click(self.pick, chosen, [self.methods, *page], **quiet)
        outputs = [*outputs, self.made]
        self.go.click(
            self.train,
            [*chosen, self.nfe, self.steps, self.seed, self.batch, self.rate],
            [self.notice, self.keys, *outputs],
            **quiet,
        )
        self.made.input(self.compare, self.made, [self.notice, self.keys, *outputs[:3]], **quiet)
        self.end.click(self.stop, self.keys, outputs, **quiet)
        self.timer.tick(self.refresh, self.keys, outputs, **quiet)


def _alike(training: Training, other: Training) -> bool:
    ours, theirs = training.config, other.config
    return (ours.teacher, ours.nfe) == (theirs.teacher, theirs.nfe)


def _nfe_choices(cards: list[Card]) -> Any:
    """The numbers of evaluations that all are meant for; where there are none, all that any is."""
    numbers = [set(card["nfe"]) for card in cards]
    if not numbers:
        return gr.skip()
    shared = sorted(set.intersection(*numbers))
    return gr.update(choices=shared or sorted(set.union(*numbers)), value=(shared or [1])[0])


def _refusals(cards: list[Card], ground: str) -> list[str]:
    """What of the choice cannot be, before anything is trained."""
    found = [text for card in cards if (text := ground_refusal(card, ground)) is not None]
    numbers = [set(card["nfe"]) for card in cards]
    if numbers and not set.intersection(*numbers):
        each = "; ".join(f"{card['name']} {', '.join(map(str, card['nfe']))}" for card in cards)
        found.append(f"these methods share no number of evaluations: {each}")
    return found


def _whole(name: str, value: object, default: int) -> int:
    if value is None:
        return default
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is {str(value)[:40]!r}: give a whole number") from error
