"""The catalogue of distillation methods as the pages show it, read from `sds3d methods --json`."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from typing import Any

from sds3d.distill.refusals import ground_refusal

TOYBOX = "toybox"
GROUNDS = {
    "Six modes on a circle (2D)": "mixture",
    "Two modes on a line (1D)": "mixture-1d",
    "Handwritten digits, 8x8": "digits",
    "Clouds of points (3D)": "clouds",
    "Toybox (shipped)": TOYBOX,
}
"""What the page calls the grounds; on all but the last students train while one looks."""

STUDENTS = {
    "denoiser": "sampled by a solver, in fewer steps",
    "flow map": "jumps along the trajectory",
    "generator": "from noise to a sample at once",
}

Card = dict[str, Any]


class Catalogue:
    """The cards of all methods; the first who asks waits for the process that lists them."""

    def __init__(self, cards: Sequence[Card] | None = None) -> None:
        self._cards = None if cards is None else list(cards)
        self._lock = threading.Lock()

    def cards(self) -> list[Card]:
        """Every card. Raises CalledProcessError where the command fails, a defect."""
        with self._lock:
            if self._cards is None:
                listed = subprocess.run(
                    [sys.executable, "-m", "sds3d.cli", "methods", "--json"],
                    capture_output=True,
                    check=True,
                    timeout=120,
                    encoding="utf-8",
                )
                self._cards = json.loads(listed.stdout.strip().splitlines()[-1])
            return list(self._cards or [])

    def find(self, name: str) -> Card | None:
        """The card of that name."""
        return next((card for card in self.cards() if card["name"] == name), None)

    def title(self, name: str) -> str:
        """The method's title; its name where there is no such card."""
        card = self.find(name)
        return name if card is None else str(card["title"])


def titles(cards: Sequence[Card]) -> list[tuple[str, str]]:
    """(title, name) pairs for a list to choose from."""
    return [(card["title"], card["name"]) for card in cards]


def tree_html(cards: Sequence[Card], chosen: Collection[str], ground: str) -> str:
    """The surveys' taxonomy: families, kinds of students, methods as buttons that choose them.

    A method that the ground does not serve says why.
    """
    families = "".join(
        f"<section><h4>{html.escape(family[:1].upper() + family[1:])}</h4>"
        + "".join(
            f"<h5>{html.escape(kind)} <small>{html.escape(STUDENTS.get(kind, ''))}</small></h5>"
            + "".join(
                _button(card, card["name"] in chosen, ground)
                for card in cards
                if (card["family"], card["student"]) == (family, kind)
            )
            for kind in dict.fromkeys(c["student"] for c in cards if c["family"] == family)
        )
        + "</section>"
        for family in dict.fromkeys(card["family"] for card in cards)
    )
    return f'<div class="taxonomy" role="group" aria-label="methods by family">{families}</div>'


def _button(card: Card, is_chosen: bool, ground: str) -> str:
    refused = ground_refusal(card, ground)
    kind = "method unfit" if refused else "method"
    note = "" if refused is None else f"<small class=refusal>{html.escape(refused)}</small>"
    nfe = " · ".join(map(str, card["nfe"]))
    return (
        f'<button type="button" class="{kind}" data-method="{html.escape(card["name"])}" '
        f'aria-pressed="{"true" if is_chosen else "false"}"><b>{html.escape(card["title"])}</b>'
        f'<span class=nfe title="evaluations of the network for one sample">NFE {nfe}</span>'
        f"<span class=idea>{html.escape(card['idea'])}</span>{note}</button>"
    )


def card_html(card: Card) -> str:
    """A card: idea, equation, and where it comes from."""
    rows = (
        ("Family", html.escape(card["family"])),
        ("Student", html.escape(card["student"])),
        ("Needs", html.escape(", ".join(card["needs"]))),
        ("Evaluations", html.escape(" or ".join(map(str, card["nfe"])))),
        ("Reference", _reference(card["reference"])),
    )
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return (
        f'<article class="card"><h3>{html.escape(card["title"])}</h3>'
        f"<p>{html.escape(card['idea'])}</p>"
        f'<p class="equation">{html.escape(card["equation"])}</p><dl>{body}</dl></article>'
    )


def cards_html(cards: Sequence[Card]) -> str:
    """Cards side by side; "" for none."""
    drawn = "".join(card_html(card) for card in cards)
    return f'<div class="cards">{drawn}</div>' if drawn else ""


def _reference(text: str) -> str:
    """With links to the papers, which are followed only when clicked."""
    return re.sub(
        r"\b(\d{4}\.\d{4,5})",
        r'<a href="https://arxiv.org/abs/\1" target="_blank" rel="noreferrer noopener">\1</a>',
        html.escape(text),
    )
