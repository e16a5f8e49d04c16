"""Make a recorded result again and say whether it came out the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .config import DeviceName, GenerateConfig
from .config_json import ALGORITHM_VERSION, from_dict
from .errors import ConfigError, PromptError, RunError
from .events import Event, Listener, Result, Step, Warning, ignore_event
from .generate import Generated, Parts, ShouldStop, generate, ignore_folder, never_stop


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Make the run of a result.json again elsewhere and compare each file's SHA-256.

    Differences are warnings: the exit code is 0 with them and without.
    """

    result: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULT.JSON")]
    """The result.json to reproduce."""
    out: Path = Path("reproduced")
    """Folder in which the new run's folder is made; not the one that holds the original."""
    device: DeviceName = "auto"
    """Where to compute; auto is where the original was made."""


def reproduce(
    config: ReproduceConfig,
    *,
    on_event: Listener = ignore_event,
    should_stop: ShouldStop = never_stop,
    on_folder: Callable[[Path], None] = ignore_folder,
    parts: Parts | None = None,
) -> Generated:
    """Generate anew with the recorded options and compare.

    A Warning event names every difference: of version, teacher, machine, and of each file. On the
    same machine's CPU and versions there is none. The Result event comes after them. Raises
    RunError for a result.json that cannot be used, and the other errors of `sds3d.errors`.
    """
    recorded, options = read_result(config.result)
    if config.out.resolve() == config.result.resolve().parent.parent:
        raise RunError(f"{config.out} holds the original: choose another folder with --out")
    if recorded.get("algorithm") != ALGORITHM_VERSION:
        text = f"recorded by algorithm {recorded.get('algorithm')}, this is {ALGORITHM_VERSION}"
        on_event(Warning(text))
    device = options.device if config.device == "auto" else config.device
    steps_done = 0

    def count_and_tell(event: Event) -> None:
        nonlocal steps_done
        if isinstance(event, Step):
            steps_done = event.step
        # The result comes last, after what there is to say of it.
        if not isinstance(event, Result):
            on_event(event)

    steps = recorded.get("steps")
    ended_at = steps if isinstance(steps, int) else options.optimize.total_steps
    generated = generate(
        dataclasses.replace(options, out=config.out, device=device),
        overwrite=True,
        on_event=count_and_tell,
        should_stop=should_stop,
        should_finish=lambda: steps_done >= ended_at,
        on_folder=on_folder,
        parts=parts,
    )
    for text in differences(recorded, generated.result):
        on_event(Warning(text))
    on_event(Result(folder=generated.folder, result=generated.result))
    return generated


def read_result(path: Path) -> tuple[dict[str, Any], GenerateConfig]:
    """The content of a result.json and the options it was made with."""
    try:
        recorded = json.loads(path.read_bytes())
        options = from_dict(recorded["config"])
        if not isinstance(recorded["files"], dict):
            raise RunError(f"{path} names no files: it is not the result.json of a run")
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}): give a result.json") from error
    except (ValueError, KeyError, TypeError, ConfigError, PromptError) as error:
        raise RunError(f"{path} is not the result.json of a run: {error}") from error
    return recorded, options


def differences(recorded: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """What differs between two results, in words; files first, then what may have caused it."""
    found = []
    before, after = recorded["files"], made["files"]
    for name in sorted({*before, *after} - {"config.json"}):
        if name not in after:
            found.append(f"{name} was not made")
        elif name not in before:
            found.append(f"{name} is new")
        elif before[name] != after[name]:
            found.append(f"{name} differs from the recorded one")
    for name, get in _CAUSES.items():
        if found and get(recorded) != get(made):
            found.append(f"{name} was {get(recorded)} and is {get(made)}")
    return found


_CAUSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda result: result.get("version"),
    "teacher": lambda result: result.get("teacher"),
    "the second stage's teacher": lambda result: (result.get("refine") or {}).get("teacher"),
    "machine": lambda result: result.get("machine"),
}
