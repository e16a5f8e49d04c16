"""Students in training: one process at a time, its events kept for whoever looks.

The folder of a student is the truth: one that is there already is shown and not trained again,
also after the server was started anew. Those in training then and those that waited have their turn
again, the former from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sds3d.distill.run import DistillConfig
from sds3d.errors import BadInput, ConfigError, OutputError
from sds3d.ui.kept_students import keep, kept
from sds3d.ui.processes import CommandFailed, Processes

PICTURE_SECONDS = 1.0
"""Between pictures of a student in training."""
MOST_WAITING = 8
MOST_STEPS = 20_000
MOST_BATCH = 1024
TIMEOUT_SECONDS = 3600.0
MOST_LISTED = 60
CARD = "student.json"
HISTORY = "history.json"
PICTURE = "student.png"


@dataclass
class Training:
    """One student on its way: "waiting", "training", "done" or "failed", and its course.

    pictured      step of its latest picture; None before the first
    to_teacher    by step, the distance of the samples in its pictures to the teacher's
    """

    config: DistillConfig
    state: str = "waiting"
    step: int = 0
    stage: str = ""
    eta_seconds: float | None = None
    losses: dict[str, dict[int, float]] = field(default_factory=dict)
    pictured: int | None = None
    to_teacher: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> str:
        """The name of the student's folder."""
        return self.config.folder.name

    @property
    def is_live(self) -> bool:
        """Whether anything of it will change."""
        return self.state in ("waiting", "training")

    def hear(self, event: dict[str, Any]) -> None:
        """Take in one event of the process."""
        if event["event"] == "distillpicture":
            self.pictured = event["step"]
            if isinstance(event["to_teacher"], (int, float)):
                self.to_teacher[event["step"]] = event["to_teacher"]
        if event["event"] != "distillstep":
            return
        self.step, self.stage = event["step"], event["stage"]
        self.eta_seconds = event["eta_seconds"]
        for name, value in event["losses"].items():
            if isinstance(value, (int, float)):
                self.losses.setdefault(name, {})[self.step] = value


class Trainings:
    """The queue of students below the folder `out`, which it takes up again where it was left."""

    def __init__(self, processes: Processes, out: Path) -> None:
        self.out = out
        self.processes = processes
        self._known: dict[str, Training] = {}
        self._queue: queue.Queue[Training | None] = queue.Queue()
        # In training or waiting for it, in turn.
        self._pending: list[Training] = []
        self._lock = threading.Lock()
        self._closed = False
        for config in kept(out):
            self._enqueue(Training(config))
        self._thread = threading.Thread(target=self._work, name="trainings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Train no more; the process that runs is ended by `Processes.close`.

        What is in training and what waits is for the next server.
        """
        with self._lock:
            self._closed = True
        self._queue.put(None)

    def submit(self, config: DistillConfig) -> Training:
        """The training of this student, begun unless it is known or its folder is there.

        Raises BadInput for one that asks for too much, and where too many are waiting, and
        OutputError where it cannot be written down.
        """
        for name, value, most in (
            ("steps", config.steps, MOST_STEPS),
            ("batch", config.batch, MOST_BATCH),
        ):
            if value > most:
                raise ConfigError(f"{name} is {value}: this place allows at most {most}")
        with self._lock:
            known = self._known.get(config.folder.name)
            # One that was told to stop is on its way out: the new one goes on where it ends.
            if known is not None and known.is_live and not known.stop.is_set():
                return known
            training = Training(config)
            if self.card(training) is not None:
                training.state = "done"
            elif sum(t.state == "waiting" for t in self._pending) >= MOST_WAITING:
                raise BadInput(f"{MOST_WAITING} students are waiting: try again later")
            else:
                self._keep(training)
                self._enqueue(training)
            self._known[training.key] = training
            return training

    def stop(self, training: Training) -> None:
        """End it within a step, or before it begins; the same again goes on from where it was."""
        training.stop.set()
        # Where it cannot be written down now, it is when the process has ended.
        with self._lock, contextlib.suppress(OutputError):
            self._keep()

    def get(self, key: str) -> Training | None:
        """The student of that name, in training here or made before; None for any other."""
        return self._known.get(key) or self._made(key)

    def made(self, ground: str) -> list[Training]:
        """The finished students of a ground, the latest first."""
        try:
            cards = [(path.stat().st_mtime, path) for path in self.out.glob(f"*/{CARD}")]
        except OSError:
            return []
        found = (self.get(path.parent.name) for _, path in sorted(cards, reverse=True))
        here = (t for t in found if t is not None and t.config.teacher == ground)
        return [training for training in here if training.state == "done"][:MOST_LISTED]

    def live(self) -> list[Training]:
        """What is in training or waits for it, first come first."""
        return [training for training in list(self._known.values()) if training.is_live]

    def card(self, training: Training) -> dict[str, Any] | None:
        """The content of the finished student's student.json."""
        card = _read(training.config.folder / CARD)
        return card if card is not None and isinstance(card.get("measured"), dict) else None

    def course(self, training: Training) -> dict[str, dict[str, dict[int, float]]]:
        """Curves by title: the losses by player, and the distance to the teacher's samples."""
        if training.state == "done":
            kept = _read(training.config.folder / HISTORY) or {}
            losses, distance = kept.get("losses", {}), kept.get("distance", {})
        else:
            losses, distance = training.losses, training.to_teacher
        return {
            "Distance to the teacher": {"samples": _curve(distance)},
            "Loss": {name: _curve(values) for name, values in losses.items()},
        }

    def picture(self, training: Training) -> bytes | None:
        """The student's latest picture; None while there is none."""
        try:
            return (training.config.folder / PICTURE).read_bytes()
        except OSError:
            return None

    def _made(self, key: str) -> Training | None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", key):
            return None
        card = _read(self.out / key / CARD)
        if card is None:
            return None
        try:
            config = DistillConfig(
                method=str(card["method"]),
                teacher=str(card["ground"]),
                steps=int(card["steps"]),
                nfe=int(card["nfe"]),
                batch=int(card["batch"]),
                learning_rate=float(card["learning_rate"]),
                seed=int(card["seed"]),
                out=self.out,
            )
        except (KeyError, TypeError, ValueError, ConfigError):
            return None
        # A folder of another name was renamed, and would be looked for where it is not.
        return Training(config, state="done") if config.folder.name == key else None

    def _enqueue(self, training: Training) -> None:
        self._known[training.key] = training
        self._pending.append(training)
        self._queue.put(training)

    def _keep(self, *more: Training) -> None:
        """Write down what is to be trained, for a server that comes after this one."""
        if not self._closed:
            keep(self.out, [t.config for t in (*self._pending, *more) if not t.stop.is_set()])

    def _work(self) -> None:
        while (training := self._queue.get()) is not None:
            self._train(training)
            with self._lock, contextlib.suppress(OutputError):
                self._pending.remove(training)
                self._keep()

    def _train(self, training: Training) -> None:
        if training.stop.is_set():
            training.state, training.reason = "failed", "stopped before it began"
        elif self.card(training) is not None:
            # It had just ended when the server before this one did.
            training.state = "done"
        else:
            training.state = "training"
            try:
                self.processes.run(
                    _words(training.config),
                    training.hear,
                    timeout_seconds=TIMEOUT_SECONDS,
                    should_stop=training.stop,
                )
            except CommandFailed as error:
                training.state, training.reason = "failed", str(error)
            except Exception as error:
                training.state, training.reason = "failed", f"{type(error).__name__}: {error}"
            else:
                training.state = "done"


def _words(config: DistillConfig) -> list[str]:
    words = ["distill", config.method]
    names = ("teacher", "steps", "nfe", "batch", "learning_rate", "seed", "samples", "out")
    for name in (*names, "picture_every"):
        words += ["--" + name.replace("_", "-"), str(getattr(config, name))]
    return words


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _curve(values: Mapping[Any, Any]) -> dict[int, float]:
    """JSON knows no whole numbers as keys."""
    return {int(k): float(v) for k, v in list(values.items()) if isinstance(v, (int, float))}
