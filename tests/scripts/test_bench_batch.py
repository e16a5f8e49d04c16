"""What the timing of batches makes of the seconds that it measured."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

import bench_batch

ITEMS = 4


def _args() -> argparse.Namespace:
    return argparse.Namespace(
        items=ITEMS,
        steps=10,
        preset="fast",
        prompt="a red mushroom",
        teacher="toybox",
        device="cpu",
        ray="local",
        sds3d="sds3d",
    )


def _patch(monkeypatch: pytest.MonkeyPatch, outcome: str, called: list[list[str]]) -> None:
    """A command of 40 s whose items took 20, 16, 6 and 8 s, in the order in which they ended."""

    def seconds(_: argparse.Namespace, words: list[str]) -> tuple[float, list[dict[str, Any]]]:
        called.append(words)
        took = (20.0, 16.0, 6.0, 8.0)
        items = [{"event": "item", "outcome": outcome, "seconds": value} for value in took]
        return 40.0, [*items, {"event": "summary"}]

    monkeypatch.setattr(bench_batch, "_seconds", seconds)


@pytest.mark.parametrize(
    ("workers", "warm_seconds", "warm_items_per_hour"), [(1, 8.0, 450.0), (2, 7.0, 1028.6)]
)
def test_the_first_items_of_the_workers_are_not_warm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    warm_seconds: float,
    warm_items_per_hour: float,
) -> None:
    called: list[list[str]] = []
    _patch(monkeypatch, "ok", called)
    made = bench_batch._batch(_args(), tmp_path / "out", "processes", workers)
    assert made == {
        "way": "processes",
        "workers": workers,
        "command_seconds": 40.0,
        "items_per_hour": 360.0,
        "warm_seconds": warm_seconds,
        "warm_items_per_hour": warm_items_per_hour,
    }
    (words,) = called
    assert words[words.index("--workers") + 1] == str(workers)
    assert "--ray" not in words
    lines = Path(words[1]).read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2, 3]
    bench_batch._batch(_args(), tmp_path / "ray", "ray", workers)
    assert called[1][-2:] == ["--ray", "local"]


def test_items_that_were_not_made_are_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _patch(monkeypatch, "skipped", [])
    with pytest.raises(SystemExit, match="not all items were made"):
        bench_batch._batch(_args(), tmp_path / "out", "processes", 1)
