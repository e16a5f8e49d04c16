"""A disk that fills up in the middle of a run: a clear sentence, and nothing saved before is lost.

Where this process may mount, the disk is every other time a small one of its own in memory, which
something else fills between two steps, and every fifth time it is a job store's; where it may not,
the counts say that the store was left out. Otherwise the system refuses to let any file grow
beyond a size (RLIMIT_FSIZE), which comes out of the same calls as another error.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sds3d.config import GenerateConfig
from sds3d.errors import Sds3dError
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService

from .cheap import STEPS, make_config, words_of
from .children import run_and_fill, run_and_limit
from .kills import examine, go_on, undisturbed
from .processes import Child
from .tally import Tally, Trial, Trials

SIZE = 96 * 2**20
"""Of the small disk: more than sds3d asks for before it begins."""
STORE_EACH = 5
STORE_LEFT_OUT = "a job store left out, a run instead: this process may not mount a file system"
LEAST_BYTES = 4096
"""That a file may have: what is printed here goes to files too."""


def fill_disk(trials: Trials) -> Tally:
    """Fill the disk before a step's save or the export; every fifth time that of a job store."""
    tally = Tally()
    whole = undisturbed(trials.folder)
    checkpoint = max(p.stat().st_size for p in trials.folder.rglob("checkpoint-*.safetensors"))
    with small_disk(trials.folder / "disk") as disk:
        for trial in trials.each(tally):
            draw = trial.draw
            if disk is not None and trial.number % STORE_EACH == STORE_EACH - 1:
                tally.seen["a small file system filled up"] += 1
                _fill_store(tally, trial, disk)
                continue
            if disk is None and trial.number % STORE_EACH == STORE_EACH - 1:
                tally.seen[STORE_LEFT_OUT] += 1
            step = draw.randint(1, STEPS + 1)
            if disk is None or trial.number % 2 == 1:
                tally.seen["RLIMIT_FSIZE set"] += 1
                out = trial.folder / "out"
                left = draw.randrange(LEAST_BYTES, checkpoint)
                child = Child(run_and_limit, words_of(out), step, left, folder=trial.folder)
                said = child.end()
            else:
                tally.seen["a small file system filled up"] += 1
                out = disk / f"out-{trial.number}"
                left = draw.randrange(2 * checkpoint)
                child = Child(run_and_fill, words_of(out), disk, step, left, folder=trial.folder)
                said = child.end()
                (disk / "ballast").unlink(missing_ok=True)
            if said.is_crash or said.code not in (0, 2):
                tally.blame(f"exit code {said.code}: {said.err}")
            elif said.code == 0:
                tally.seen["what was left was enough"] += 1
            elif not re.search(r"no space left to write in|cannot write to the standard", said.err):
                tally.blame(f"not said to be the disk's: {said.err}")
            else:
                tally.seen["refused in one sentence"] += 1
            # Steps are told before they are saved.
            reached = examine(tally, out, min(step, STEPS))
            go_on(tally, trial.folder, out, whole.hashes, reached)
            shutil.rmtree(out, ignore_errors=True)
    return tally


def _fill_store(tally: Tally, trial: Trial, disk: Path) -> None:
    """Jobs are queued on a disk that fills up: those that were accepted stay."""
    out = disk / f"out-{trial.number}"
    limits = LimitsConfig(min_free_bytes=0, max_queued=10_000)
    with JobService(out, limits=limits) as service:
        accepted = {service.submit(_request(out, n)).id for n in range(3)}
        ballast = disk / "ballast"
        left = trial.draw.randrange(2**18)
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while file.write(bytes(2**20)):
                file.flush()
        with ballast.open("rb+") as file:
            file.truncate(max(0, ballast.stat().st_size - left))
        try:
            for seed in range(3, 2000):
                accepted.add(service.submit(_request(out, seed)).id)
            tally.blame("the store was never refused")
        except Sds3dError as error:
            tally.seen["store refused in one sentence"] += 1
            if "no space left" not in str(error):
                tally.blame(f"not said to be the disk's: {error}")
        except Exception as error:
            tally.blame(repr(error))
        ballast.unlink()
    with JobService(out, limits=limits) as service:
        found = {job.id for job in service.jobs()}
        if not accepted <= found:
            tally.lose(f"{len(accepted - found)} of {len(accepted)} jobs")
        service.submit(_request(out, 9999))
    shutil.rmtree(out)


def _request(out: Path, seed: int) -> GenerateConfig:
    return make_config(out, seed=seed)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of `SIZE` bytes in memory at `folder`; None where it cannot be mounted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and (
        subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
