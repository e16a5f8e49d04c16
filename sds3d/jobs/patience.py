"""Writing in a store whose disk is full: what a worker has to say waits until there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sds3d.errors import OutputError

STORE_WAIT_SECONDS = 0.5
"""Between two tries; a fraction of it between two looks whether to give up."""

P = ParamSpec("P")
T = TypeVar("T")


def patiently(
    must_end: Callable[[], bool], write: Callable[P, T], *args: P.args, **how: P.kwargs
) -> T:
    """What `write` returns, tried again while the store cannot be written.

    A transaction that was refused has changed nothing, so that it may be tried again. Raises
    OutputError where it is refused and `must_end`.
    """
    while True:
        try:
            return write(*args, **how)
        except OutputError:
            if must_end():
                raise
        until = time.monotonic() + STORE_WAIT_SECONDS
        while time.monotonic() < until and not must_end():
            time.sleep(STORE_WAIT_SECONDS / 5)
