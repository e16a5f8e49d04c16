"""A second Ctrl-C at every point at which Python looks for signals: it never hides the way on."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from sds3d import cli
from sds3d import generate as pipeline
from sds3d.errors import Interrupted
from sds3d.events import Event, Step
from sds3d.signals import Stop

WORDS = ("generate", "a red mushroom", "--steps", "4", "--device", "cpu", "--json")


class Shots:
    """Sends SIGINT at the `at`-th point after `begin` at which signals are looked for.

    These are the beginnings of functions, generators going on included, and the ends of calls of
    C functions: what a profiler is told. With `at` 0 they are only counted.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.points = 0
        self.places: list[str] = []

    def begin(self) -> None:
        sys.setprofile(self._look)

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "c_return"):
            return
        self.points += 1
        if self.points == self.at:
            # Before the signal: what it raises ends the profile.
            sys.setprofile(None)
            self.places.append(f"{event} in {frame.f_code.co_qualname}")
            signal.raise_signal(signal.SIGINT)


def _shoot(main: Callable[[Shots], int], at: int) -> tuple[int, Shots]:
    shots = Shots(at)
    try:
        return main(shots), shots
    except KeyboardInterrupt:
        pytest.fail(f"it escaped: {shots.places}")
    finally:
        sys.setprofile(None)


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of its own: its handlers stay when a command is over."""
    # What lies on the disk after a power cut is not the question here, and takes the most time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    sys.setprofile(None)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _parts(where: str, fakes: SimpleNamespace, shots: Shots) -> Any:
    """The parts of a run that is told to stop there; from there on its points are counted."""

    class Loop(fakes.Loop):
        def __call__(self, *given: Any, on_event: Callable[[Event], None], **how: Any) -> Any:
            def listen(event: Event) -> None:
                on_event(event)
                if where == "in the loop" and isinstance(event, Step) and event.step == 2:
                    signal.raise_signal(signal.SIGINT)

            made = super().__call__(*given, on_event=listen, **how)
            if made.stopped:
                shots.begin()
            return made

    def write(*given: Any) -> Any:
        if where == "twice in the export":
            signal.raise_signal(signal.SIGINT)
            # Before what the second one raises, so that it is a third that is shot.
            shots.begin()
            signal.raise_signal(signal.SIGINT)
        return fakes.write_files(*given)

    return fakes.make_parts(loop=Loop(), write_files=write)


# A stop may come between a file's opening and the block that closes it.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("where", "stride"),
    [("in the loop", 6), ("twice in the export", 6), ("when all is made", 61)],
)
def test_one_more_signal_at_any_point_does_not_hide_how_to_go_on(
    where: str,
    stride: int,
    fakes: SimpleNamespace,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = pipeline._finished

    def main(shots: Shots) -> int:
        def when_made(*given: Any) -> Any:
            if where == "when all is made":
                signal.raise_signal(signal.SIGINT)
                shots.begin()
            return finished(*given)

        parts = _parts(where, fakes, shots)
        monkeypatch.setattr(pipeline, "_finished", when_made)
        monkeypatch.setattr(sys, "argv", ["sds3d", *WORDS, "--out", str(tmp_path / str(shots.at))])
        return cli.main(parts=parts)

    ends = []
    for at in range(1, 2000, stride):
        code, shots = _shoot(main, at)
        err = capsys.readouterr().err
        assert "Traceback" not in err, (shots.places, err)
        if not shots.places:
            break
        ends.append(code)
        if code == 130:
            assert "sds3d generate --resume" in err, (shots.places, err)
        else:
            # The run was faster than the second signal.
            assert (code, where) == (0, "when all is made")
    assert len(ends) > 8
    assert 130 in ends


@pytest.mark.parametrize(
    ("work", "words", "way_on"),
    [
        ("sds3d.batch.run.run_batch", ["batch", "list.txt"], "the same command goes on"),
        ("sds3d.evaluate.run.evaluate", ["evaluate"], "the same command goes on"),
        ("sds3d.distill.run.distill", ["distill", "meanflow"], "the same command goes on"),
        ("sds3d.generate.resume", ["generate", "--resume", "here"], "generate --resume here"),
        ("sds3d.generate.export_run", ["export", "here"], "generate --resume here"),
        ("sds3d.preview.preview", ["preview", "a mushroom"], None),
    ],
)
def test_every_command_that_keeps_something_says_how_to_go_on(
    work: str, words: list[str], way_on: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stopped_twice(*_: Any, **__: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal did not stop it")

    monkeypatch.setattr(work, stopped_twice)
    assert cli.main(words) == 143
    err = capsys.readouterr().err
    (said,) = [line for line in err.splitlines() if line.startswith("sds3d: ")]
    assert said == "sds3d: stopped" if way_on is None else way_on in said


def test_a_stop_on_its_way_is_not_stopped_once_more_and_one_that_was_swallowed_is(
    tmp_path: Path,
) -> None:
    stop = Stop()
    with stop.listening():
        try:
            raise Interrupted(tmp_path)
        except Interrupted:
            # Of the first it takes notice whatever is on its way.
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert stop()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            try:
                raise ValueError("while it is cleaned up")
            except ValueError:
                signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == 143
