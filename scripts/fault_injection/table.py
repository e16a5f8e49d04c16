"""Every fault: its name, what it is, how often it is tried, and a short form for the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .broken_numbers import break_numbers
from .damage import damage_checkpoints
from .disk import fill_disk
from .fuzzed_configs import fuzz_configs
from .fuzzed_prompts import fuzz_prompts
from .interrupts import interrupt_runs
from .kills import kill_runs
from .sharing import share_folder
from .tally import Tally, Trials
from .workers import kill_workers


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table; `full` and `short` are how often it is tried."""

    name: str
    what: str
    inject: Callable[[Trials], Tally]
    full: int
    short: int


FAULTS = (
    Fault(
        name="kills",
        what="kill -9 at random times, and inside saves and exports",
        inject=kill_runs,
        full=200,
        short=20,
    ),
    Fault(
        name="damage",
        what="checkpoints truncated, bits flipped, exchanged",
        inject=damage_checkpoints,
        full=1000,
        short=100,
    ),
    Fault(
        name="disk",
        what="the disk full, in a run and in the job store",
        inject=fill_disk,
        full=50,
        short=10,
    ),
    Fault(
        name="sharing",
        what="two processes on one folder",
        inject=share_folder,
        full=50,
        short=6,
    ),
    Fault(
        name="numbers",
        what="NaN and infinity, from the teacher and in gradients",
        inject=break_numbers,
        full=100,
        short=20,
    ),
    Fault(
        name="workers",
        what="items of a batch, every twentieth killing its worker once",
        inject=kill_workers,
        full=100,
        short=20,
    ),
    Fault(
        name="signals",
        what="Ctrl-C and SIGTERM, once and twice",
        inject=interrupt_runs,
        full=50,
        short=10,
    ),
    Fault(
        name="prompts",
        what="fuzzed lists of prompts",
        inject=fuzz_prompts,
        full=1000,
        short=100,
    ),
    Fault(
        name="configs",
        what="fuzzed config.json, config.toml and flags",
        inject=fuzz_configs,
        full=1000,
        short=100,
    ),
)
