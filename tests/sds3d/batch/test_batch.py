"""Batches with a worker process of fakes: exit codes, isolation, what is skipped, what is shown."""

import functools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sds3d import cli
from sds3d.batch import run as batch
from sds3d.batch.config import BatchConfig
from sds3d.batch.prompts import Line
from sds3d.batch.report import Report, Row
from sds3d.batch.run import BatchInterrupted, run_batch
from sds3d.config import GenerateConfig
from sds3d.events import Event, Item, Summary
from sds3d.jobs.errors import WorkersFail
from sds3d.runs import RunFolder

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "jobs" / "worker_with_fakes.py"))


def _run_folders(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir())


def test_a_list_with_a_stop_a_deadly_item_and_one_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("STEP_SECONDS", "0.01")
    monkeypatch.setattr(batch, "run_batch", functools.partial(run_batch, command=COMMAND))
    prompts = tmp_path / "list.txt"
    names = ["a red mushroom", "a deadly mushroom", "a hamburger", "a <b>blue</b> mushroom"]
    prompts.write_text("\n".join(names))
    out = tmp_path / "made"

    # Stopped after the first item: what is made is kept, the rest is unfinished.
    heard: list[Event] = []
    config = BatchConfig(prompts=str(prompts), out=out, steps=8, device="cpu", retries=0)
    with pytest.raises(BatchInterrupted) as stopped:
        run_batch(
            config,
            on_event=heard.append,
            should_stop=lambda: any(isinstance(event, Item) for event in heard),
            command=COMMAND,
        )
    assert stopped.value.exit_code == 130
    summary = next(event for event in heard if isinstance(event, Summary))
    assert summary.ok >= 1
    assert summary.ok + summary.failed + summary.unfinished == 4

    # The same command goes on: exit code 3, for two of the items cannot be made.
    words = ["batch", str(prompts), "--out", str(out), "--steps", "8", "--device", "cpu"]
    assert cli.main([*words, "--retries", "0", "--json"]) == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "summary"
    items = {event["line"]: event for event in events if event["event"] == "item"}
    assert sorted(items) == [1, 2, 3, 4]
    assert [items[n]["outcome"] for n in (1, 2, 3)] == ["skipped", "failed", "failed"]
    assert items[4]["outcome"] in ("ok", "skipped")
    assert "SIGKILL" in items[2]["reason"]
    assert "nearest: mushroom" in items[3]["reason"]
    assert (events[-1]["failed"], events[-1]["unfinished"]) == (2, 0)
    assert [event["done"] for event in events if event["event"] == "item"] == [1, 2, 3, 4]
    for line in (1, 4):
        assert RunFolder.open(Path(items[line]["folder"])).verify() == []

    # The log and the page say so, in the order of the list and with nothing unescaped.
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert [row["prompt"] for row in rows] == names
    assert rows[1]["error"] == "WorkerDied"
    page = (out / "index.html").read_text()
    assert "a &lt;b&gt;blue" in page
    assert "<b>" not in page
    links = re.findall(r'(?:href|src|poster)="([^"]+)"', page)
    assert len(links) >= 6
    assert all((out / link).is_file() for link in links)


def test_a_list_that_is_all_made_is_skipped_whole_and_shards_share_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "run_batch", functools.partial(run_batch, command=COMMAND))
    prompts = tmp_path / "list.jsonl"
    prompts.write_text(
        "\n".join(json.dumps({"prompt": "a red mushroom", "seed": n, "steps": 2}) for n in range(5))
    )
    words = ["batch", str(prompts), "--out", str(tmp_path / "made"), "--device", "cpu"]
    assert cli.main([*words, "--shard", "1/2"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "made" / "index-1-of-2.html")
    assert "3 ok" in err
    assert len(_run_folders(tmp_path / "made")) == 3
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "made").rglob("mesh.glb")}
    assert cli.main([*words, "--workers", "2"]) == 0
    out, err = capsys.readouterr()
    assert "2 ok, 3 skipped" in err
    assert len(_run_folders(tmp_path / "made")) == 5
    assert {p: p.stat().st_mtime_ns for p in before} == before
    rows = [json.loads(x) for x in (tmp_path / "made" / "manifest.jsonl").read_text().splitlines()]
    assert Counter(row["outcome"] for row in rows) == {"ok": 2, "skipped": 3}


def test_bad_lists_end_with_2_before_anything_is_made(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "Supervisor", None)
    monkeypatch.chdir(tmp_path)
    Path("list.jsonl").write_text('{"prompt": "a car"}\n{"prompt": 3}\n')
    for words, reason in (
        (["list.jsonl"], "line 2: 'prompt' must be of type str"),
        (["missing.txt"], "cannot read 'missing.txt'"),
        (["list.jsonl", "--shard", "2/1"], "--shard"),
        (["list.jsonl", "--workers", "0"], "--workers is 0"),
        (["list.jsonl", "--timeout", "0"], "--timeout is 0"),
        (["list.jsonl", "--teacher", "nope", "--skip-bad"], "--teacher is 'nope'"),
        (["list.jsonl", "--skip-bad", "--out", "list.jsonl"], "choose another folder"),
    ):
        assert cli.main(["batch", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert reason in err
        assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.glb"))


def test_workers_that_do_not_come_up_end_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds3d.jobs.supervisor.MOST_FALSE_STARTS", 1)
    prompts = tmp_path / "list.txt"
    prompts.write_text("a red mushroom")
    command = (sys.executable, "-c", "raise SystemExit('no such library')")
    with pytest.raises(WorkersFail, match="no such library"):
        run_batch(BatchConfig(prompts=str(prompts), out=tmp_path / "made"), command=command)


def test_the_page_of_nothing_and_of_hostile_names(tmp_path: Path) -> None:
    report = Report(tmp_path, "")
    config = GenerateConfig(prompt="<script>alert(1)</script> {counts} %s")
    row = Row(
        line=1,
        prompt=config.prompt,
        seed=0,
        preset="fast",
        outcome="failed",
        folder="gone",
        seconds=1.0,
        failures=1,
        error="X",
        reason="<img src=x onerror=y>",
        degraded=None,
    )
    report.add(row)
    page = report.write().read_text()
    assert page.count("<script>") == 1
    assert "{counts} %s" in page
    assert "<img" not in page
    assert Line(number=1, config=config).number == row.line
