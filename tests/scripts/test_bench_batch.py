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


def _patch(
    monkeypatch: pytest.MonkeyPatch, folder: Path, outcome: str, called: list[list[str]]
) -> None:
    """A command of 40 s whose items took 20, 16, 6 and 8 s, in the order in which they ended.

    Each took two pictures in the 5 s of its optimisation, of 0.1 s and of 0.1 to 0.4 s.
    """
    for number in range(ITEMS):
        run = folder / f"run-{number}"
        run.mkdir()
        events = [{"event": "preview", "path": "x", "seconds": 0.1}, {"event": "stage"}]
        events.append({"event": "preview", "path": "x", "seconds": 0.1 * (number + 1)})
        (run / "progress.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        (run / "result.json").write_text(json.dumps({"seconds": {"optimize": 5.0}}))

    def seconds(_: argparse.Namespace, words: list[str]) -> tuple[float, list[dict[str, Any]]]:
        called.append(words)
        took = (20.0, 16.0, 6.0, 8.0)
        items = [
            {"event": "item", "outcome": outcome, "seconds": value, "folder": f"{folder}/run-{n}"}
            for n, value in enumerate(took)
        ]
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
    _patch(monkeypatch, tmp_path, "ok", called)
    made = bench_batch._batch(_args(), tmp_path / "out", "processes", workers)
    assert made == {
        "way": "processes",
        "workers": workers,
        "command_seconds": 40.0,
        "items_per_hour": 360.0,
        "warm_seconds": warm_seconds,
        "warm_items_per_hour": warm_items_per_hour,
        "pictures": 2 * ITEMS,
        "picture_share": 0.1,
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
    _patch(monkeypatch, tmp_path, "skipped", [])
    with pytest.raises(SystemExit, match="not all items were made"):
        bench_batch._batch(_args(), tmp_path / "out", "processes", 1)
