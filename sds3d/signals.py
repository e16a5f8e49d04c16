"""Ctrl-C and SIGTERM as a question that a loop can ask."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from .errors import EXIT_SIGINT, EXIT_SIGTERM, Interrupted


class Stop:
    """Turns Ctrl-C and SIGTERM into a question that the loop asks after every step.

    The first signal asks for a stop that keeps a checkpoint, the next stops at once: wherever it
    comes it raises KeyboardInterrupt, unless that or an Interrupted is already on its way out.

    Attributes:
        signal: The first that came; None before.
        way_on: How to go on with what is kept if it were stopped now, in words. Whoever works says
            it before there is anything to keep; None while nothing is.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.way_on: str | None = None
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
        if self.signal is None:
            self.signal = number
            # os.write, because a handler may interrupt a print.
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
        elif not _is_on_its_way(sys.exc_info()[1]):
            raise KeyboardInterrupt


def _is_on_its_way(error: BaseException | None) -> bool:
    """Whether what is being cleaned up after is, or was made of, a stop.

    All code that runs while an exception leaves a block does so with it at hand, in the block's
    __exit__, "except" or "finally".
    """
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, Interrupted)):
            return True
        error = error.__context__
    return False
