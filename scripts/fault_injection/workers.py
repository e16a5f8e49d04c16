"""Workers killed in a batch: the items that they had are tried again, and no item is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sds3d.batch.config import BatchConfig
from sds3d.batch.run import run_batch
from sds3d.errors import Sds3dError
from sds3d.events import Event, Item

from .cheap import PROMPT, STEPS, hashes, run_folder, words_of
from .children import run_command
from .processes import Child, environment, python_path
from .tally import Tally, Trials

ITEMS_FOR_EACH_DEATH = 20
WORKERS = 2
COMMAND = (sys.executable, "-m", "fault_injection.worker")


def kill_workers(trials: Trials) -> Tally:
    """A batch of `count` items and two workers, of which every twentieth item kills its own."""
    tally = Tally()
    draw = trials.draw(0)
    out, deaths = trials.folder / "out", trials.folder / "deaths"
    deaths.mkdir(parents=True)
    deadly = draw.sample(range(trials.count), max(1, trials.count // ITEMS_FOR_EACH_DEATH))
    for seed in deadly:
        (deaths / str(seed)).write_text(str(draw.randint(1, STEPS + 1)))
    prompts = trials.folder / "list.jsonl"
    lines = [json.dumps({"prompt": PROMPT, "seed": seed}) for seed in range(trials.count)]
    prompts.write_text("\n".join(lines))

    def listen(event: Event) -> None:
        if isinstance(event, Item):
            tally.tried += 1
            trials.tick()

    config = BatchConfig(prompts=str(prompts), out=out, steps=STEPS, device="cpu", workers=WORKERS)
    try:
        with environment(FAULT_DEATHS=str(deaths), PYTHONPATH=python_path()):
            summary = run_batch(config, on_event=listen, command=COMMAND)
    except Sds3dError as error:
        tally.lose(f"the batch ended: {error}")
        return tally
    if (summary.ok, summary.failed, summary.unfinished) != (trials.count, 0, 0):
        tally.lose(f"{trials.count} items, and {summary}")
    _look_at(tally, trials, set(deadly))
    return tally


def _look_at(tally: Tally, trials: Trials, deadly: set[int]) -> None:
    """Every item's row and files; those that were interrupted, against an undisturbed run."""
    out = trials.folder / "out"
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    if sorted(row["seed"] for row in rows) != list(range(trials.count)):
        tally.tear("manifest.jsonl does not name every item once")
    for row in rows:
        died = row["seed"] in deadly
        if row["failures"] != int(died):
            tally.lose(f"item {row['seed']} was tried {row['failures'] + 1} times: {row['reason']}")
        tally.seen["tried again after a death"] += row["failures"]
        if row["outcome"] != "ok":
            continue
        files = hashes(out / row["folder"])
        if not files:
            tally.tear(f"the files of item {row['seed']} are not whole")
        elif died and files != _undisturbed(trials.folder / f"alone-{row['seed']}", row["seed"]):
            tally.tear(f"item {row['seed']} is not what an undisturbed run makes")
    if list(trials.folder.joinpath("deaths").iterdir()):
        tally.lose("not every worker was killed that was to be")


def _undisturbed(folder: Path, seed: int) -> dict[str, str]:
    said = Child(run_command, [*words_of(folder / "out"), "--seed", str(seed)], folder=folder).end()
    made = run_folder(folder / "out")
    if said.code != 0 or made is None:
        raise RuntimeError(f"the undisturbed run failed: {said.err}")
    return hashes(made)
