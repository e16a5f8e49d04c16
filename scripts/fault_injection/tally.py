"""What was tried, and what it cost: the figures of one fault."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN_TROUBLES = 5
MOST_CHARACTERS = 2000
"""Of a trouble, its end."""


@dataclass(kw_only=True)
class Tally:
    """Counts of one fault; `seen` counts what the tries came to, so that it shows they struck.

    Attributes:
        tried: How often the fault was put in.
        lost: Work or results gone that the program had promised to keep.
        torn: Files that are not whole under their final name, and damage that was not noticed.
        tracebacks: Ends without an error of the program's own, or with another exit code.
    """

    tried: int = 0
    lost: int = 0
    torn: int = 0
    tracebacks: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.tried > 0 and not (self.lost or self.torn or self.tracebacks)

    def lose(self, what: str) -> None:
        self.lost += 1
        self._tell("lost", what)

    def tear(self, what: str) -> None:
        self.torn += 1
        self._tell("torn", what)

    def blame(self, what: str) -> None:
        self.tracebacks += 1
        self._tell("traceback", what)

    def as_dict(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {
            "tried": self.tried,
            "lost": self.lost,
            "torn": self.torn,
            "tracebacks": self.tracebacks,
            "seen": dict(sorted((+self.seen).items())),
            "troubles": self.troubles,
        }

    def _tell(self, kind: str, what: str) -> None:
        if len(self.troubles) < SHOWN_TROUBLES:
            self.troubles.append(f"{kind}: {what[-MOST_CHARACTERS:]}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One try: its number from 0, its own randomness, and a folder that is removed after it."""

    number: int
    draw: random.Random
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How often to try, with what randomness, where; `tick` is called after each."""

    count: int
    seed: int
    folder: Path
    tick: Callable[[], None] = lambda: None

    def each(self, tally: Tally) -> Iterator[Trial]:
        """The tries one after another, counted in `tally`."""
        for number in range(self.count):
            folder = self.folder / f"{number:04d}"
            folder.mkdir(parents=True)
            yield Trial(number=number, draw=self.draw(number), folder=folder)
            shutil.rmtree(folder, ignore_errors=True)
            tally.tried += 1
            self.tick()

    def draw(self, number: int) -> random.Random:
        """The randomness of one try: the same for every count."""
        return random.Random(f"{self.seed}-{number}")
