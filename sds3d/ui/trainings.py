"""Students in training: one process at a time, its events kept for whoever looks.

The folder of a student is the truth: one that is there already is shown and not trained again,
also after the server was started anew.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sds3d.distill.run import DistillConfig
from sds3d.errors import BadInput, ConfigError
from sds3d.ui.processes import CommandFailed, Processes

MOST_WAITING = 8
MOST_STEPS = 20_000
MOST_BATCH = 1024
TIMEOUT_SECONDS = 3600.0
CARD = "student.json"


@dataclass
class Training:
    """One student on its way: "waiting", "training", "done" or "failed", and its losses."""

    config: DistillConfig
    state: str = "waiting"
    step: int = 0
    stage: str = ""
    eta_seconds: float | None = None
    losses: dict[str, dict[int, float]] = field(default_factory=dict)
    reason: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> str:
        """The name of the student's folder."""
        return self.config.folder.name

    def hear(self, event: dict[str, Any]) -> None:
        """Take in one event of the process."""
        if event["event"] != "distillstep":
            return
        self.step, self.stage = event["step"], event["stage"]
        self.eta_seconds = event["eta_seconds"]
        for name, value in event["losses"].items():
            if isinstance(value, (int, float)):
                self.losses.setdefault(name, {})[self.step] = value


class Trainings:
    """The queue of students below the folder `out`."""

    def __init__(self, processes: Processes, out: Path) -> None:
        self.out = out
        self._processes = processes
        self._known: dict[str, Training] = {}
        self._queue: queue.Queue[Training | None] = queue.Queue()
        self._waiting: deque[str] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="trainings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Train no more; the process that runs is ended by `Processes.close`."""
        self._queue.put(None)

    def submit(self, config: DistillConfig) -> Training:
        """The training of this student, begun unless it is known or its folder is there.

        Raises BadInput for one that asks for too much, and where too many are waiting.
        """
        for name, value, most in (
            ("steps", config.steps, MOST_STEPS),
            ("batch", config.batch, MOST_BATCH),
        ):
            if value > most:
                raise ConfigError(f"{name} is {value}: this place allows at most {most}")
        with self._lock:
            known = self._known.get(config.folder.name)
            if known is not None and known.state in ("waiting", "training"):
                return known
            training = Training(config)
            if self.card(training) is not None:
                training.state = "done"
            elif len(self._waiting) >= MOST_WAITING:
                raise BadInput(f"{MOST_WAITING} students are waiting: try again later")
            else:
                self._waiting.append(training.key)
                self._queue.put(training)
            self._known[training.key] = training
            return training

    def get(self, key: str) -> Training | None:
        """The training of that name, None where this server has not seen it."""
        return self._known.get(key)

    def card(self, training: Training) -> dict[str, Any] | None:
        """The content of the finished student's student.json."""
        try:
            card = json.loads((training.config.folder / CARD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return card if isinstance(card, dict) and isinstance(card.get("measured"), dict) else None

    def _work(self) -> None:
        while (training := self._queue.get()) is not None:
            with self._lock:
                self._waiting.remove(training.key)
            if training.stop.is_set():
                training.state, training.reason = "failed", "stopped before it began"
                continue
            training.state = "training"
            try:
                self._processes.run(
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
    for name in ("teacher", "steps", "nfe", "batch", "learning_rate", "seed", "samples", "out"):
        words += ["--" + name.replace("_", "-"), str(getattr(config, name))]
    return words
