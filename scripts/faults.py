"""The fault table: put faults into runs, jobs and batches, and count what they cost.

    python scripts/faults.py [--only NAME ...] [--short | --scale 0.1] [--seed N] [--json]

For each fault a line: how often it was tried, how many results were lost, files torn (or damage
not noticed) and ends in a traceback, and the seconds; below it, what the tries came to. A count
that is not 0 is told with its first cases, and makes the exit code 1. Runs are of five steps on a
tiny field, with a teacher and an export of milliseconds; all else is the program itself. The disk
is every other time a small tmpfs, where this process may mount one, else RLIMIT_FSIZE; the lines
below say which. With --json the last line is an object
{"faults": {name: counts}, "clean": bool, "seconds": s}. Needs a system that can fork.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fault_injection.table import FAULTS, Fault
from fault_injection.tally import Tally, Trials
from sds3d.progress import eta_text

PROGRESS_SECONDS = 2.0


def main(words: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Inject the faults that were asked for; returns the exit code."""
    names = [fault.name for fault in faults]
    parser = argparse.ArgumentParser(description="Put faults in and count what they cost.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--short", action="store_true", help="as often as the tests do")
    how_many.add_argument("--scale", type=_share, default=1.0, help="share of the full counts")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--folder", type=Path, help="where to work, by default the system's")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    args = parser.parse_args(words)

    counts: dict[str, Any] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sds3d-faults-", dir=args.folder) as folder:
        for fault in faults:
            if fault.name not in args.only:
                continue
            count = fault.short if args.short else max(1, round(fault.full * args.scale))
            started = time.monotonic()
            tick = _progress(fault.name, count)
            place = Path(folder) / fault.name
            tally = Tally()
            try:
                tally = fault.inject(Trials(count=count, seed=args.seed, folder=place, tick=tick))
            except Exception as error:
                # The fault could not be put in: the other rows are still worth having.
                traceback.print_exception(error)
                tally.blame(f"{type(error).__name__}: {error}")
            seconds = round(time.monotonic() - started, 1)
            counts[fault.name] = {**tally.as_dict(), "seconds": seconds}
            print(_line(fault, tally, seconds), flush=True)
    clean = all(not (c["lost"] or c["torn"] or c["tracebacks"]) for c in counts.values())
    clean = clean and all(c["tried"] > 0 for c in counts.values())
    if args.json:
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"faults": counts, "clean": clean, "seconds": seconds}))
    return 0 if clean else 1


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 100")
    return share


def _line(fault: Fault, tally: Tally, seconds: float) -> str:
    numbers = f"tried {tally.tried}, lost {tally.lost}, torn {tally.torn}"
    lines = [f"{fault.name}: {fault.what}", f"  {numbers}, tracebacks {tally.tracebacks}"]
    lines[-1] += f", {seconds:.1f} s"
    lines += [f"  {count:6d} {what}" for what, count in sorted((+tally.seen).items())]
    lines += [f"  {trouble}" for trouble in tally.troubles]
    return "\n".join(lines)


def _progress(name: str, count: int) -> Callable[[], None]:
    """What to call after each try: shows how many are left on stderr now and then."""
    began = shown = time.monotonic()
    done = 0

    def tick() -> None:
        nonlocal done, shown
        done += 1
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            left = (now - began) / done * (count - done)
            print(f"{name}: {done} of {count}, {eta_text(left)} left", file=sys.stderr, flush=True)

    return tick


if __name__ == "__main__":
    sys.exit(main())
