"""A batch on a disk without room: it waits, says so once, and does not wait for ever."""

import dataclasses
import errno
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sds3d import cli
from sds3d.batch import run as batch
from sds3d.batch.config import BatchConfig
from sds3d.batch.disk import DiskWatch
from sds3d.batch.report import Report, Row
from sds3d.batch.run import run_batch
from sds3d.config import GenerateConfig
from sds3d.errors import DiskFull
from sds3d.events import Event, Item, Warning
from sds3d.jobs.errors import DiskLow
from sds3d.jobs.job import Job
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.store import Store


class _Disk:
    """A disk with or without room, the clock beside it, and what was told of it."""

    def __init__(self) -> None:
        self.low = True
        self.seconds = 0.0
        self.heard: list[Event] = []
        self.watch = DiskWatch(
            self._check, self.heard.append, patience_seconds=60, now=lambda: self.seconds
        )

    def _check(self) -> None:
        if self.low:
            raise DiskLow(2**20, 2**21)

    def after(self, seconds: float, *active: Job, waiting: int = 3) -> bool:
        self.seconds += seconds
        return self.watch.hopeless(waiting, lambda: active) is not None


@pytest.fixture
def job(tmp_path: Path) -> Job:
    with Store(tmp_path / "jobs.sqlite3") as store:
        store.submit(GenerateConfig(prompt="a red mushroom"))
        claimed = store.claim("w")
    assert claimed is not None
    return claimed


def test_what_waits_is_told_once_and_given_up_after_a_while() -> None:
    disk = _Disk()
    assert not disk.after(0)
    assert not disk.after(59)
    (told,) = disk.heard
    assert isinstance(told, Warning)
    assert "only 1 MiB are free" in told.text
    assert "ends after 1 minutes" in told.text
    assert disk.after(1)


def test_room_or_nothing_that_waits_begins_the_wait_anew() -> None:
    disk = _Disk()
    assert not disk.after(0)
    disk.low = False
    assert not disk.after(30)
    disk.low = True
    assert not disk.after(40)
    assert not disk.after(59)
    assert len(disk.heard) == 2
    assert not disk.after(100, waiting=0)


def test_an_item_at_work_is_waited_for_and_one_that_only_came_to_look_is_not(job: Job) -> None:
    disk = _Disk()
    for _ in range(100):
        assert not disk.after(3, job)
    assert not disk.after(59)
    assert disk.after(1)
    disk = _Disk()
    given_up = False
    for look in range(40):
        # Claimed and given back at once, each time a claim of its own.
        given_up = disk.after(3, dataclasses.replace(job, started=float(look)))
        if given_up:
            break
    assert given_up
    assert disk.seconds == 63


def test_a_batch_that_cannot_go_on_ends_with_every_item_failed_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle:
        """A worker that finds no room."""

        trouble = log = None

        def __init__(self, *_: object, **__: object) -> None: ...
        def start(self) -> None: ...
        def tend(self) -> None: ...
        def __enter__(self) -> "Idle":
            return self

        def __exit__(self, *_: object) -> None: ...

    def check_disk(*_: object) -> None:
        raise DiskLow(2**20, 2**21)

    monkeypatch.setattr(batch, "Supervisor", Idle)
    monkeypatch.setattr(batch, "_limits", lambda: LimitsConfig(min_free_bytes=0))
    monkeypatch.setattr(batch, "check_disk", check_disk)
    monkeypatch.setattr("sds3d.batch.disk.DISK_PATIENCE_SECONDS", 0.3)
    prompts = tmp_path / "list.txt"
    prompts.write_text("a red mushroom\na blue mushroom\n")
    heard: list[Event] = []
    config = BatchConfig(prompts=str(prompts), out=tmp_path / "made", device="cpu")
    summary = run_batch(config, on_event=heard.append)
    assert (summary.ok, summary.failed, summary.unfinished) == (0, 2, 0)
    items = [event for event in heard if isinstance(event, Item)]
    assert [(item.outcome, item.done) for item in items] == [("failed", 1), ("failed", 2)]
    assert all("give the same command again" in str(item.reason) for item in items)
    assert '"DiskLow"' in (tmp_path / "made" / "manifest.jsonl").read_text()


@pytest.fixture
def row() -> Callable[..., Row]:
    def make(line: int, **fields: Any) -> Row:
        common = {"prompt": "p", "seed": 0, "preset": "fast", "outcome": "ok", "folder": "run"}
        common |= {"seconds": 1.0, "failures": 0, "error": None, "reason": None, "degraded": None}
        return Row(line=line, **(common | fields))

    return make


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_rows_that_had_no_room_are_written_with_the_next_and_no_line_is_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Callable[..., Row]
) -> None:
    manifest = tmp_path / "manifest.jsonl"

    def lines() -> list[int]:
        return [json.loads(text)["line"] for text in manifest.read_text().splitlines()]

    class HalfFull:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "HalfFull":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, text: str) -> None:
            self._file.write(text[:5])
            _full()

    report = Report(tmp_path, "")
    report.add(row(2))
    whole = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *given, **how: HalfFull(whole(*given, **how)))
        patch.setattr("sds3d.batch.report.write_atomic", _full)
        report.add(row(3))
        report.add(row(4))
        with pytest.raises(DiskFull):
            report.write()
    report.add(row(1))
    assert sorted(lines()) == [1, 2, 3, 4]
    report.add(row(5))
    assert sorted(lines()) == [1, 2, 3, 4, 5]
    assert report.write().is_file()
    assert lines() == [1, 2, 3, 4, 5]


def test_a_viewer_without_room_leaves_the_row_and_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Callable[..., Row]
) -> None:
    monkeypatch.setattr("sds3d.batch.report.write_viewer", _full)
    report = Report(tmp_path, "")
    report.add(row(1))
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 1
    assert report.write().is_file()


def test_a_batch_whose_log_has_no_room_makes_every_item_and_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (sys.executable, str(Path(__file__).parents[1] / "jobs" / "worker_with_fakes.py"))
    monkeypatch.setattr(batch, "run_batch", functools.partial(run_batch, command=command))
    prompts, out = tmp_path / "list.txt", tmp_path / "made"
    prompts.write_text("a red mushroom\na blue mushroom\n")
    words = ["batch", str(prompts), "--out", str(out), "--device", "cpu", "--steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("sds3d.batch.report.write_atomic", _full)
        patch.setattr("sds3d.batch.report.write_viewer", _full)
        assert cli.main(words) == 3
    shown, said = capsys.readouterr()
    assert shown == ""
    assert "2 ok" in said
    assert "no space left to write in" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (out / "index.html").exists()
    # The same command makes the page, of the runs that are there.
    assert cli.main(words) == 0
    shown, said = capsys.readouterr()
    assert "2 skipped" in said
    assert Path(shown.strip()).is_file()
