"""The evaluation as a whole: prompts to summary, misses, resuming, the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sds3d import cli
from sds3d.config import GenerateConfig
from sds3d.errors import EXIT_OK, EXIT_SIGINT, ConfigError, Interrupted
from sds3d.evaluate import run as evaluation
from sds3d.evaluate.config import EvaluateConfig
from sds3d.evaluate.exact import exact_mesh, exact_solid
from sds3d.evaluate.measure import Judge, Measured
from sds3d.evaluate.prompts import draw_prompts
from sds3d.evaluate.references import References
from sds3d.evaluate.run import evaluate
from sds3d.evaluate.summary import Row, figures, quality, seconds_by_stage
from sds3d.events import Event, Listener, Stage, Warning
from sds3d.export import export_mesh
from sds3d.generate import Parts
from sds3d.toybox.scenes import SceneSpec

pytest.importorskip("embreex")

SEED, PROMPTS = 5, 4
ASKED = draw_prompts(PROMPTS, SEED)


class Works:
    """Parts that make the exact mesh of each prompt, except that some fail."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.failing = failing
        self.made: list[str] = []
        self.loaded = 0
        self._specs = {one.prompt: one.spec for one in ASKED}

    def parts(self) -> Parts:
        return Parts(load_teacher=self._load, optimize=self._optimize, write_files=self._write)

    def _load(self, name: str, device: str) -> Any:
        self.loaded += 1
        return SimpleNamespace(
            weights_sha256="c" * 64, check_prompt=lambda _: SimpleNamespace(warning=None)
        )

    def _optimize(self, config: GenerateConfig, teacher: Any, **_: Any) -> Any:
        if config.prompt in self.failing:
            raise RuntimeError("it came apart")
        return SimpleNamespace(
            field=None,
            occupancy=None,
            step=config.optimize.total_steps,
            seconds={},
            health=[],
            agreement={},
            stopped=False,
        )

    def _write(
        self, optimized: Any, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]:
        on_event(Stage("mesh"))
        self.made.append(config.prompt)
        export_mesh(exact_mesh(exact_solid(self._specs[config.prompt], 0)), folder)
        return {"mesh": {}, "iso_iou": 1.0, "seconds": {"mesh": 2.0, "export": 1.0}}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("references"), variations=1, threads=2)


def _config(out: Path, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(
        prompts=PROMPTS, seed=SEED, preset="fast", device="cpu", out=out, **options
    )


def test_perfect_meshes_get_perfect_figures_and_a_miss_counts(
    references: References, tmp_path: Path, heard: list[Event]
) -> None:
    failing = next(one for one in ASKED if one.form == "one colour" and one.held_out)
    works = Works(frozenset({failing.prompt}))
    summary = evaluate(_config(tmp_path), heard.append, parts=works.parts(), references=references)
    assert works.loaded == 1
    assert len(works.made) == PROMPTS - 1
    share = (PROMPTS - 1) / PROMPTS
    for name in ("r_precision", "valid"):
        assert summary["all"][name] == share
        assert summary["training_pairs"][name] == 1.0
        assert summary["held_out_pairs"][name] == 0.5
    assert summary["all"]["two_color_accuracy"] == summary["all"]["stacked_accuracy"] == 1.0
    assert 0.95 * share < summary["all"]["silhouette_iou"] <= share
    assert 0.98 * share < summary["all"]["f_score"] <= share
    assert summary["seconds"]["mesh"] == {"median": 2.0, "max": 2.0}
    assert summary["teacher"]["weights_sha256"] == "c" * 64
    assert summary["examples"]["worst"] == failing.prompt
    said = [event.text for event in heard if isinstance(event, Warning)]
    assert said == [f"{failing.prompt}: it came apart"]
    # The baselines are asked the same prompts, and frame the runs' figures.
    sphere, wrong, exact = (
        summary["baselines"][name]["all"] for name in ("sphere", "wrong_kind", "exact")
    )
    assert sphere["prompts"] == wrong["prompts"] == exact["prompts"] == PROMPTS
    assert sphere["silhouette_iou"] < exact["silhouette_iou"]
    assert sphere["kind_accuracy"] == wrong["kind_accuracy"] == 0.0
    assert exact["valid"] == exact["r_precision"] == 1.0
    # Everything is on the disk too.
    report = json.loads(Path(summary["report"]).read_text())
    assert report["summary"] == summary
    rows = {row["prompt"]: row for row in report["rows"]}
    assert rows[failing.prompt]["mesh"] is None
    assert "it came apart" in rows[failing.prompt]["problem"]
    others = [row for row in report["rows"] if row["prompt"] != failing.prompt]
    assert all((tmp_path / row["mesh"]).is_file() for row in others)
    with Image.open(summary["picture"]) as picture:
        assert picture.width > picture.height > 100


def test_memory_that_is_short_and_a_mesh_that_cannot_be_measured_are_misses(
    references: References,
    tmp_path: Path,
    heard: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhausted, unmeasured = ASKED[0], ASKED[1]
    works = Works()
    optimize, measure = works._optimize, Judge.measure

    def starve(config: GenerateConfig, teacher: Any, **how: Any) -> Any:
        if config.prompt == exhausted.prompt:
            raise MemoryError
        return optimize(config, teacher, **how)

    def stumble(self: Judge, spec: SceneSpec, path: Path) -> Measured:
        if spec == unmeasured.spec:
            raise ValueError("a surface without points")
        return measure(self, spec, path)

    monkeypatch.setattr(works, "_optimize", starve)
    monkeypatch.setattr(Judge, "measure", stumble)
    config = _config(tmp_path, baselines=False)
    summary = evaluate(config, heard.append, parts=works.parts(), references=references)
    assert summary["all"]["prompts"] == PROMPTS
    assert summary["all"]["r_precision"] == summary["all"]["valid"] == (PROMPTS - 2) / PROMPTS
    assert [event.text for event in heard if isinstance(event, Warning)] == [
        f"{exhausted.prompt}: MemoryError",
        f"{unmeasured.prompt}: a surface without points",
    ]
    rows = {row["prompt"]: row for row in json.loads(Path(summary["report"]).read_text())["rows"]}
    assert rows[exhausted.prompt]["problem"] == "MemoryError"
    assert rows[unmeasured.prompt]["problem"] == "ValueError: a surface without points"
    for one in (exhausted, unmeasured):
        assert rows[one.prompt]["mesh"] is None
        assert rows[one.prompt]["seconds"] == {}


def test_finished_meshes_are_not_made_again(references: References, tmp_path: Path) -> None:
    config = _config(tmp_path, baselines=False)
    first, second = Works(frozenset({ASKED[0].prompt})), Works()
    evaluate(config, parts=first.parts(), references=references)
    summary = evaluate(config, parts=second.parts(), references=references)
    assert second.made == [ASKED[0].prompt]
    assert summary["all"]["r_precision"] == 1.0
    assert summary["baselines"] == {}


def test_a_stop_keeps_what_is_made_and_says_how_to_go_on(
    references: References, tmp_path: Path
) -> None:
    works = Works()
    with pytest.raises(Interrupted, match="same command") as stopped:
        evaluate(
            _config(tmp_path),
            parts=works.parts(),
            references=references,
            should_stop=lambda: len(works.made) == 2,
        )
    assert stopped.value.exit_code == EXIT_SIGINT
    again = Works()
    evaluate(_config(tmp_path, baselines=False), parts=again.parts(), references=references)
    assert len(works.made) + len(again.made) >= PROMPTS
    assert len(again.made) < PROMPTS


def test_the_command_prints_the_summary_last(
    references: References,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "References", lambda _folder: references)
    words = ["evaluate", "--prompts", str(PROMPTS), "--seed", str(SEED), "--preset", "fast"]
    words += ["--out", str(tmp_path), "--no-baselines", "--json"]
    assert cli.main(words, parts=Works().parts()) == EXIT_OK
    printed = capfd.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert lines[-1]["prompts"] == PROMPTS
    assert lines[-1]["all"]["r_precision"] == 1.0
    assert any(line.get("event") == "stage" for line in lines[:-1])
    assert "ETA" in printed.err


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match="--prompts"):
        EvaluateConfig(prompts=0)
    with pytest.raises(ConfigError, match="--seed"):
        EvaluateConfig(seed=-1)


def test_the_options_load_neither_torch_nor_the_world() -> None:
    code = (
        "import sys, sds3d.evaluate.config\n"
        "print([m for m in sys.modules if m in ('torch', 'numba') or 'toybox' in m])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- the arithmetic of the summary -----------------------------------------------------------


def _row(i: int, **values: Any) -> Row:
    return Row(asked=ASKED[i], measured=Measured(**values), seconds={"optimize": float(i)})


def test_figures_are_means_over_the_prompts_that_they_apply_to() -> None:
    rows = [
        _row(2, retrieved=True, kind=True, color=False, silhouette_iou=0.8, azimuth=0.5),
        _row(3, retrieved=False, kind=True, color=True, silhouette_iou=0.4, azimuth=None),
        _row(0, composition=True, kind=True),
        _row(1, composition=False),
    ]
    found = figures(rows)
    assert found["prompts"] == 4
    assert found["r_precision"] == 0.25
    assert found["kind_accuracy"] == 0.75
    assert found["color_accuracy"] == 0.25
    assert found["silhouette_iou"] == pytest.approx(0.3)
    assert found["azimuth_accuracy"] == 0.5
    assert found["azimuth_prompts"] == 1
    forms = {ASKED[0].form: 1.0, ASKED[1].form: 0.0}
    assert found["two_color_accuracy"] == forms["two colours"]
    assert found["stacked_accuracy"] == forms["stacked"]
    assert figures([])["r_precision"] is None


def test_seconds_and_order() -> None:
    rows = [_row(i) for i in range(3)] + [dataclasses.replace(_row(3), seconds={})]
    assert seconds_by_stage(rows) == {"optimize": {"median": 1.0, "max": 2.0}}
    best = Measured(retrieved=True, silhouette_iou=0.5, nearest="a")
    blurred = Measured(retrieved=True, silhouette_iou=0.4, nearest="a")
    wrong = Measured(retrieved=False, silhouette_iou=0.9, nearest="b")
    ranks = [quality(m) for m in (best, blurred, wrong, Measured())]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == 4
