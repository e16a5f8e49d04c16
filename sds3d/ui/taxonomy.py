"""The catalogue of distillation methods as the pages show it, read from `sds3d methods --json`."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

ANY = "any"
GROUNDS = {
    "six modes on a circle (2D)": "mixture",
    "two modes on a line (1D)": "mixture-1d",
    "8x8 handwritten digits": "digits",
}
_NEED_WORDS = {"class labels", "a classifier"}

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

    def families(self) -> list[str]:
        """In the catalogue's order."""
        return list(dict.fromkeys(card["family"] for card in self.cards()))

    def students(self) -> list[str]:
        """The kinds of students."""
        return list(dict.fromkeys(card["student"] for card in self.cards()))

    def chosen(self, family: str, student: str, ground: str) -> list[Card]:
        """The methods of a family and a kind of student that the ground serves."""
        return [
            card
            for card in self.cards()
            if family in (ANY, card["family"])
            and student in (ANY, card["student"])
            and not (ground == "mixture-1d" and _NEED_WORDS & set(card["needs"]))
        ]


def titles(cards: Sequence[Card]) -> list[tuple[str, str]]:
    """(title, name) pairs for a list to choose from."""
    return [(card["title"], card["name"]) for card in cards]


def card_html(card: Card | None) -> str:
    """A card: idea, equation, and where it comes from."""
    if card is None:
        return ""
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


def _reference(text: str) -> str:
    """With links to the papers, which are followed only when clicked."""
    return re.sub(
        r"arXiv (\d{4}\.\d{4,5})",
        r'<a href="https://arxiv.org/abs/\1" target="_blank" rel="noreferrer noopener">'
        r"arXiv \1</a>",
        html.escape(text),
    )
