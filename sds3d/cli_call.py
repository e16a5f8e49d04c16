"""One use of the command line: its words, and where its answer goes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from .errors import OutputError
from .signals import Stop

if TYPE_CHECKING:
    from .events import Event, Listener
    from .generate import Parts

Command = TypeVar("Command")


class Output:
    """Where a command's data goes: the real stdout, whatever libraries print meanwhile."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.json = False

    def line(self, text: str) -> None:
        """Print a line. Raises OutputError where the system refuses it, as on a full disk."""
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.stream is sys.__stdout__:
                silence_stdout()
            raise OutputError(
                f"cannot write to the standard output ({error.strerror}): free some space or send "
                "it elsewhere, then run the same command again; what was already saved is kept"
            ) from error

    def event(self, event: Event) -> None:
        if self.json:
            self.line(event.to_json())


def silence_stdout() -> None:
    """What is still to be written there at exit goes nowhere, instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One use of the command line: a command's name, its words, and what it talks through."""

    name: str
    words: list[str]
    output: Output
    stop: Stop
    parts: Parts | None

    def parse(self, command: type[Command], default: Command | None = None) -> Command:
        """The command's options; prints help or what is wrong with a flag, then SystemExit."""
        import tyro

        with contextlib.redirect_stdout(self.output.stream):
            parsed = tyro.cli(
                command,
                prog=f"sds3d {self.name}",
                args=self.words,
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
        return cast(Command, parsed)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Listener]:
        """A listener for the command's work: progress on stderr, with `--json` events on stdout."""
        from .progress import progress

        with progress() as show:

            def listen(event: Event) -> None:
                show(event)
                self.output.event(event)

            yield listen
