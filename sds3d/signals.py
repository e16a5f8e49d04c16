"""Ctrl-C and SIGTERM as a question that a loop can ask."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from .errors import EXIT_SIGINT, EXIT_SIGTERM


class Stop:
    """Turns Ctrl-C and SIGTERM into a question that the loop asks after every step.

    The first signal asks for a stop that keeps a checkpoint, the next stops at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._ended = False

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return EXIT_SIGTERM if self.signal == signal.SIGTERM else EXIT_SIGINT

    def end(self) -> None:
        """Take no more notice of signals: all that is left is to say how it ended."""
        self._ended = True

    @contextlib.contextmanager
    def listening(self, *, restore: bool = True) -> Iterator[None]:
        """Take the signals meanwhile. With `restore` they then go to whom they went before.

        Without, they go nowhere: for a process that has nothing left to do but to end.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in signals}
        try:
            yield
        finally:
            self.end()
            for number, handler in before.items() if restore else ():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._ended:
            return
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # os.write, because a handler may interrupt a print.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")
