"""A run's folder: its options, its checkpoints, its log and, last of all, its result.

    <slug>-<key>/
        config.json                  the resolved options, the weights' hash, the key
        events.jsonl                 every event but single steps, one line each
        checkpoint-000007.safetensors, .json   and the one before
        refine/                      the second stage's checkpoints, where there is one
        mesh.glb, preview.png, ...   the files
        particle-2/mesh.glb, ...     those of further particles
        result.json                  written last; names the SHA-256 of each file

A run is done when result.json is there and every file that it names has the recorded hash. The
folder is the only truth: nothing else is kept anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .atomic import PARTIAL_SUFFIX, make_writable_folder, sha256_file, write_atomic
from .checkpoints import CheckpointFile
from .config import GenerateConfig
from .config_json import ALGORITHM_VERSION, folder_name, from_dict, run_key, to_dict
from .errors import (
    ConfigError,
    PromptError,
    RunError,
    RunLocked,
    is_write_error,
    output_error,
)
from .events import Event, Listener, Step, ignore_event
from .refine import REFINE_FOLDER, refine_checkpoint


class RunFolder:
    """A run's folder, opened by `create` or `open`; work in it only inside `locked()`."""

    def __init__(
        self, path: Path, config: GenerateConfig, weights_sha256: str, on_event: Listener
    ) -> None:
        self.path = path
        self.config = config
        self.weights_sha256 = weights_sha256
        self._listener = on_event
        self.checkpoint = CheckpointFile(path, self.emit)

    @classmethod
    def create(
        cls, config: GenerateConfig, weights_sha256: str, on_event: Listener = ignore_event
    ) -> RunFolder:
        """The folder of this request below `config.out`, made if it is not there.

        Raises OutputError where it cannot be made or written.
        """
        path = config.out / folder_name(config, weights_sha256)
        make_writable_folder(path)
        return cls(path, config, weights_sha256, on_event)

    @classmethod
    def open(cls, path: Path, on_event: Listener = ignore_event) -> RunFolder:
        """An existing run's folder. Raises RunError where it is none or was changed by hand."""
        try:
            document = json.loads((path / "config.json").read_bytes())
            config = from_dict(document["config"])
            weights_sha256, key = document["weights_sha256"], document["key"]
        except OSError as error:
            raise RunError(
                f"{path} is not a run's folder (no readable config.json): "
                "give a folder that sds3d generate made"
            ) from error
        except (ValueError, KeyError, TypeError, ConfigError, PromptError) as error:
            raise RunError(f"{path / 'config.json'} is damaged: {_one_line(error)}") from error
        if not isinstance(weights_sha256, str) or key != run_key(config, weights_sha256):
            raise RunError(
                f"{path / 'config.json'} does not match its key: it was changed by hand or made "
                "by another version; generate the prompt anew"
            )
        # The folder may have been moved since.
        config = dataclasses.replace(config, out=path.parent)
        return cls(path, config, weights_sha256, on_event)

    @property
    def key(self) -> str:
        """The run's name, from everything that determines its result."""
        return run_key(self.config, self.weights_sha256)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against every other process; the system lets go if this one dies.

        Raises RunLocked where another process holds it, OutputError where it cannot be written.
        """
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise output_error(error, self.path) from error
        try:
            if not try_lock(descriptor):
                raise RunLocked(
                    f"another process is working in {self.path}: wait for it or stop it"
                )
            yield
        finally:
            os.close(descriptor)

    def held(self) -> dict[str, Any]:
        """How the teacher was held when the run began (`sds3d.teachers.held_as`), where known."""
        try:
            found = json.loads((self.path / "config.json").read_bytes())["teacher"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    def start(self, *, overwrite: bool = False, held: Mapping[str, Any] | None = None) -> None:
        """Write config.json; with `overwrite`, first forget what earlier attempts left.

        `held` is how the teacher is held; left out, it stays what was written before.
        """
        held = self.held() if held is None else dict(held)
        if overwrite:
            self._remove(self._remove_result())
            self.checkpoint.clear()
            refine_checkpoint(self.path, self.emit).clear()
            (self.path / REFINE_FOLDER / "teacher.json").unlink(missing_ok=True)
            (self.path / "events.jsonl").unlink(missing_ok=True)
        self._write_json(
            "config.json",
            {
                "algorithm": ALGORITHM_VERSION,
                "config": to_dict(self.config),
                "key": self.key,
                "teacher": held,
                "weights_sha256": self.weights_sha256,
            },
        )

    def emit(self, event: Event) -> None:
        """Log the event and pass it on to the run's listener."""
        if not isinstance(event, Step):
            try:
                _append_line(self.path / "events.jsonl", event.to_json())
            except OSError as error:
                raise output_error(error, self.path) from error
        self._listener(event)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the same disk, for files that are not yet checked; removed after."""
        folder = self.path / f".files{PARTIAL_SUFFIX}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        except OSError as error:
            raise output_error(error, self.path) from error
        try:
            yield folder
        except OSError as error:
            if not is_write_error(error, self.path):
                raise
            raise output_error(error, self.path) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Give the files of `staging` their names and write result.json with their hashes.

        Returns the result with "files" added; files of an earlier result that this one does not
        name are removed. From the first rename to the last write the run counts as not done, and
        would be made again from its checkpoint.
        """
        names = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
        try:
            stale = self._remove_result() - set(names)
            for name in names:
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, target)
            self._remove(stale)
            hashes = {name: sha256_file(self.path / name) for name in ["config.json", *names]}
        except OSError as error:
            raise output_error(error, self.path) from error
        document = {**result, "files": hashes}
        self._write_json("result.json", document)
        return document

    def result(self) -> dict[str, Any] | None:
        """The content of result.json, None where the run is not done or the file is damaged."""
        try:
            document = json.loads((self.path / "result.json").read_bytes())
        except (OSError, ValueError):
            return None
        parts = ("config", "files", "seconds")
        whole = isinstance(document, dict) and all(isinstance(document.get(p), dict) for p in parts)
        return document if whole else None

    def verify(self) -> list[str]:
        """What is missing for the run to count as done, in words; empty when it is done."""
        result = self.result()
        if result is None:
            return ["result.json is missing or damaged"]
        problems = []
        for name, digest in result["files"].items():
            path = self.path / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif sha256_file(path) != digest:
                problems.append(f"{name} was changed")
        return problems

    def _remove_result(self) -> set[str]:
        """Forget result.json; returns the names of the files that it spoke of."""
        result = self.result()
        (self.path / "result.json").unlink(missing_ok=True)
        return set(result["files"]) - {"config.json"} if result else set()

    def _remove(self, names: set[str]) -> None:
        for name in names:
            # Only plain names, also of particles: a result that came from elsewhere must not reach
            # out of the folder.
            if re.fullmatch(r"(particle-\d+/)?[\w-][\w.-]*", name):
                (self.path / name).unlink(missing_ok=True)

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
        try:
            write_atomic(self.path / name, (text + "\n").encode())
        except OSError as error:
            raise output_error(error, self.path) from error


def _append_line(path: Path, text: str) -> None:
    """Add a line; one before it that a full disk or a power cut has cut is closed first."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(text.encode() + b"\n")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
