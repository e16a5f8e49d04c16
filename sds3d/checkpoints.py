"""A loop's state on the disk: whole or not at all, damage detected, the one before kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import PARTIAL_SUFFIX, write_atomic
from .config_json import canonical_json
from .errors import CorruptCheckpoint, RunError, output_error
from .events import Listener, Warning, ignore_event

if TYPE_CHECKING:
    from torch import Tensor

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d{6,})\.json")


class CheckpointFile:
    """The state of a loop in a folder: named tensors and a JSON document beside them.

    Each save writes a new pair `checkpoint-<n>.safetensors`, `checkpoint-<n>.json`; the JSON is
    written last, names the SHA-256 of the tensors' file and of itself, and makes the pair count.
    The pair before is kept, so there is a whole one at every moment.
    """

    def __init__(self, folder: Path, on_event: Listener = ignore_event) -> None:
        self.folder = folder
        self._on_event = on_event

    def exists(self) -> bool:
        """Whether anything was saved, whole or not."""
        return bool(self._numbers())

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Save the state; until this returns, the state saved before stays loadable.

        `meta` must be what JSON can hold without loss (finite numbers, text keys). Raises
        OutputError where the disk is full or the folder cannot be written, ValueError for a `meta`
        that JSON cannot hold.
        """
        import safetensors.torch

        numbers = self._numbers()
        number = numbers[0] + 1 if numbers else 1
        copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        data = safetensors.torch.save(copies)
        document = {"meta": dict(meta), "tensors_sha256": hashlib.sha256(data).hexdigest()}
        text = _sealed(document)
        try:
            write_atomic(self._path(number, "safetensors"), data)
            write_atomic(self._path(number, "json"), text.encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path(number, "safetensors").unlink(missing_ok=True)
            raise output_error(error, self.folder) from error
        self._remove_all_but(number, *numbers[:1])

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state as (tensors on the CPU, meta), None where nothing was saved.

        A damaged state is reported as a Warning event and the one before it is taken. Raises
        CorruptCheckpoint where every state is damaged.
        """
        damage = ""
        for number in self._numbers():
            try:
                state = self._load(number)
            except CorruptCheckpoint as error:
                damage = damage or str(error)
                continue
            if damage:
                self._on_event(Warning(f"{damage}; continuing from the checkpoint before it"))
                # So that the damaged one is never taken for the spare of the next.
                self._remove_all_but(number)
            return state
        if damage:
            raise CorruptCheckpoint(
                f"{damage} and no earlier one is whole: start anew with --overwrite"
            )
        return None

    def clear(self) -> None:
        """Forget every state."""
        self._remove_all_but()

    def _load(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import safetensors.torch

        path = self._path(number, "safetensors")
        try:
            document = _unsealed(self._path(number, "json").read_bytes())
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptCheckpoint(f"the checkpoint {path.name} is missing") from None
        except OSError as error:
            raise RunError(f"cannot read {path} ({error.strerror})") from error
        except ValueError as error:
            raise CorruptCheckpoint(
                f"the checkpoint {path.with_suffix('.json').name} is damaged"
            ) from error
        if hashlib.sha256(data).hexdigest() != document["tensors_sha256"]:
            raise CorruptCheckpoint(f"the checkpoint {path.name} is damaged (its hash differs)")
        return safetensors.torch.load(data), document["meta"]

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"checkpoint-{number:06d}.{suffix}"

    def _numbers(self) -> list[int]:
        """The numbers of the states that count, newest first."""
        if not self.folder.is_dir():
            return []
        found = (_CHECKPOINT_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _remove_all_but(self, *kept: int) -> None:
        names = {
            self._path(number, suffix) for number in kept for suffix in ("json", "safetensors")
        }
        # The JSON first: without it a pair does not count.
        for pattern in ("checkpoint-*.json", "checkpoint-*.safetensors"):
            for path in self.folder.glob(pattern):
                if path not in names:
                    with contextlib.suppress(OSError):
                        path.unlink()
        for path in self.folder.glob(f".checkpoint-*{PARTIAL_SUFFIX}"):
            with contextlib.suppress(OSError):
                path.unlink()


def _sealed(document: dict[str, Any]) -> str:
    """Canonical JSON of the document with its own SHA-256 inside."""
    digest = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    return canonical_json({**document, "sha256": digest})


def _unsealed(data: bytes) -> dict[str, Any]:
    """The document that `_sealed` made `data` from; ValueError if any byte differs."""
    document = json.loads(data)
    if not isinstance(document, dict) or "sha256" not in document:
        raise ValueError("not a sealed document")
    del document["sha256"]
    if _sealed(document).encode() != data:
        raise ValueError("the hash differs")
    return document
