"""The students that wait or train, on the disk: a server that comes up again goes on with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sds3d.atomic import write_atomic
from sds3d.distill.run import DistillConfig
from sds3d.errors import Sds3dError, output_error

QUEUE = "queue.json"
NAMES = (
    *("method", "teacher", "steps", "nfe", "batch", "learning_rate", "seed", "samples"),
    "picture_every",
)
"""The options of a student; the folder of all of them is the server's own."""


def keep(out: Path, configs: Sequence[DistillConfig]) -> None:
    """Write down whose turn comes, the first one first. Raises OutputError."""
    listed = [{name: getattr(config, name) for name in NAMES} for config in configs]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / QUEUE, (json.dumps(listed, indent=1) + "\n").encode())
    except OSError as error:
        raise output_error(error, out) from error


def kept(out: Path) -> list[DistillConfig]:
    """What was written down last; what is damaged or of another version is left out."""
    try:
        listed = json.loads((out / QUEUE).read_bytes())
    except (OSError, ValueError):
        return []
    found = []
    for document in listed if isinstance(listed, list) else []:
        try:
            found.append(DistillConfig(**document, out=out))
        except (TypeError, Sds3dError):
            continue
    return found
