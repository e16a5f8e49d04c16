"""The evaluation from prompts to summary, top to bottom."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sds3d.atomic import make_writable_folder, write_atomic
from sds3d.config_json import to_dict
from sds3d.device import resolve_device
from sds3d.errors import (
    BadInput,
    CorruptCheckpoint,
    Interrupted,
    is_out_of_memory,
    output_error,
)
from sds3d.evaluate.baselines import BASELINES, Baseline, measure_baseline
from sds3d.evaluate.config import EvaluateConfig
from sds3d.evaluate.layers import Shape
from sds3d.evaluate.measure import Judge
from sds3d.evaluate.prompts import Asked, distractors, draw_prompts
from sds3d.evaluate.raycast import require_embree
from sds3d.evaluate.references import References, cache_folder
from sds3d.evaluate.sheet import write_sheet
from sds3d.evaluate.summary import Row, grouped, quality, seconds_by_stage
from sds3d.events import Event, Health, Listener, Stage, Step, Warning, ignore_event
from sds3d.generate import Parts, ShouldStop, generate, never_stop, standard_parts, with_loaded
from sds3d.presets import generate_config, with_teacher
from sds3d.progress import eta_text
from sds3d.toybox.kinds import KIND_NAMES

if TYPE_CHECKING:
    from sds3d.generate import Generated


class EvaluationInterrupted(Interrupted):
    """The user stopped the evaluation; the meshes made so far stay."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.args = (f"stopped; the same command goes on with what is in {folder}",)


def evaluate(
    config: EvaluateConfig,
    on_event: Listener = ignore_event,
    *,
    should_stop: ShouldStop = never_stop,
    parts: Parts | None = None,
    references: References | None = None,
) -> dict[str, Any]:
    """Generate the prompts of `config` and measure each mesh as it lies on the disk.

    Returns the summary, which is also written to `config.out` with a row for each prompt, beside
    a picture of the best, the median and the worst mesh. A run that fails is a miss in every
    figure. Raises BadInput where no run could succeed (teacher, output folder), and
    EvaluationInterrupted.
    """
    require_embree()
    make_writable_folder(config.out)
    asked = draw_prompts(config.prompts, config.seed)
    parts = _with_one_teacher(parts or standard_parts(config.teacher), config)
    judge = Judge(references or References(cache_folder() / "references"), config.seed)
    _prepare(judge, asked, config, on_event, should_stop)

    rows: list[Row] = []
    meshes: list[Path | None] = []
    clock = _Clock(len(asked))
    for i, one in enumerate(asked):
        on_event(Stage(f"{i + 1}/{len(asked)} {one.prompt} ({clock.eta()})"))
        row, mesh = _run(one, config, parts, judge, on_event, should_stop)
        rows.append(row)
        meshes.append(mesh)
        clock.done(1)

    baselines: dict[Baseline, list[Row]] = {}
    if config.baselines:
        clock = _Clock(len(BASELINES) * len(asked))
        for name in BASELINES:
            on_event(Stage(f"baseline: {name} ({clock.eta()})"))
            baselines[name] = []
            for i, one in enumerate(asked):
                _stop_if_asked(should_stop, config)
                measured = measure_baseline(name, one.spec, i, config.seed, judge)
                baselines[name].append(Row(asked=one, measured=measured, seconds={}))
                clock.done(1)
    summary = _summary(config, rows, baselines, parts)
    _write(config, summary, rows, meshes)
    return summary


def _with_one_teacher(parts: Parts, config: EvaluateConfig) -> Parts:
    """The same parts with the teacher loaded once, before anything is spent."""
    device = resolve_device(config.device)
    teacher = parts.load_teacher(config.teacher, device)
    return with_loaded(parts, config.teacher, device, teacher)


def _stop_if_asked(should_stop: ShouldStop, config: EvaluateConfig) -> None:
    if should_stop():
        raise EvaluationInterrupted(config.out)


class _Clock:
    """Estimates the time that is left from the pace so far."""

    def __init__(self, total: int) -> None:
        self._started = time.monotonic()
        self._total = total
        self._done = 0

    def done(self, count: int) -> None:
        self._done += count

    def eta(self) -> str:
        if self._done == 0:
            return "ETA unknown yet"
        pace = (time.monotonic() - self._started) / self._done
        return f"ETA {eta_text(pace * (self._total - self._done))}"


def _prepare(
    judge: Judge,
    asked: list[Asked],
    config: EvaluateConfig,
    on_event: Listener,
    should_stop: ShouldStop,
) -> None:
    """Make the exact renders before the runs: those of all kinds and of what is composed."""
    shapes = [Shape(kind=kind) for kind in KIND_NAMES]
    for one in asked:
        shapes += [Shape.of(one.spec), *map(Shape.of, distractors(one.spec, config.seed))]
    shapes = list(dict.fromkeys(shapes))
    missing = [shape for shape in shapes if not judge.references.is_stored(shape)]
    clock = _Clock(len(missing))
    for i, shape in enumerate(missing):
        _stop_if_asked(should_stop, config)
        if i % 10 == 0:
            on_event(Stage(f"exact renders {i}/{len(missing)} ({clock.eta()})"))
        judge.references(shape)
        clock.done(1)


def _run(
    asked: Asked,
    config: EvaluateConfig,
    parts: Parts,
    judge: Judge,
    on_event: Listener,
    should_stop: ShouldStop,
) -> tuple[Row, Path | None]:
    """One prompt's mesh, made or found, and its figures."""
    try:
        made = _generate(asked, config, parts, on_event, should_stop)
        generated = time.perf_counter()
        mesh = made.folder / "mesh.glb"
        measured = judge.measure(asked.spec, mesh)
    except Interrupted as error:
        raise EvaluationInterrupted(config.out) from error
    except Exception as error:  # whatever goes wrong with one prompt is a miss, and is said
        shortage = _shortage(error)
        if isinstance(error, BadInput) and shortage is None:
            raise
        error = shortage or error
        # A MemoryError, among others, has no text of its own.
        reason = str(error) or type(error).__name__
        on_event(Warning(f"{asked.prompt}: {reason}"))
        problem = f"{type(error).__name__}: {error}" if str(error) else reason
        return Row(asked=asked, measured=judge.missing(asked.spec, problem), seconds={}), None
    seconds = {name: float(value) for name, value in made.result["seconds"].items()}
    seconds["evaluate"] = time.perf_counter() - generated
    return Row(asked=asked, measured=measured, seconds=seconds), mesh if mesh.exists() else None


def _shortage(error: Exception) -> BaseException | None:
    """The error of memory that did not suffice, itself or behind one for a single run."""
    found = error.__cause__ or error
    return found if is_out_of_memory(found) else None


def _generate(
    asked: Asked,
    config: EvaluateConfig,
    parts: Parts,
    on_event: Listener,
    should_stop: ShouldStop,
) -> Generated:
    options = generate_config(
        config.preset,
        prompt=asked.prompt,
        seed=config.seed,
        teacher=config.teacher,
        device=config.device,
        out=config.out,
    )
    optimize = with_teacher(options.optimize, options.teacher)
    options = dataclasses.replace(options, optimize=optimize)

    def listen(event: Event) -> None:
        # A prompt is one stage here; its own stages and its result are in its folder.
        if isinstance(event, Step | Warning | Health):
            on_event(event)

    def run(overwrite: bool) -> Generated:
        return generate(
            options, on_event=listen, should_stop=should_stop, parts=parts, overwrite=overwrite
        )

    try:
        return run(False)
    except CorruptCheckpoint as error:
        on_event(Warning(f"{error}; {asked.prompt} is made anew"))
        return run(True)


def _summary(
    config: EvaluateConfig, rows: list[Row], baselines: dict[Baseline, list[Row]], parts: Parts
) -> dict[str, Any]:
    teacher = parts.load_teacher(config.teacher, resolve_device(config.device))
    return {
        "prompts": config.prompts,
        "seed": config.seed,
        "preset": config.preset,
        "teacher": {"name": config.teacher, "weights_sha256": teacher.weights_sha256},
        **grouped(rows),
        "seconds": seconds_by_stage(rows),
        "baselines": {name.replace(" ", "_"): grouped(found) for name, found in baselines.items()},
    }


def _write(
    config: EvaluateConfig, summary: dict[str, Any], rows: list[Row], meshes: list[Path | None]
) -> None:
    """Put figures and picture into the output folder and say in the summary where."""
    stem = f"evaluation-{config.preset}-{config.seed}-{config.prompts}"
    order = sorted(range(len(rows)), key=lambda i: quality(rows[i].measured), reverse=True)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    summary["examples"] = {name: rows[i].asked.prompt for name, i in chosen.items()}
    summary["report"] = str(config.out / f"{stem}.json")
    summary["picture"] = str(config.out / f"{stem}.png")
    document = {
        "summary": summary,
        "config": to_dict(config),
        "rows": [
            {
                "prompt": row.asked.prompt,
                "form": row.asked.form,
                "held_out": row.asked.held_out,
                "mesh": None if mesh is None else str(mesh.relative_to(config.out)),
                **row.measured.as_dict(),
                "seconds": row.seconds,
            }
            for row, mesh in zip(rows, meshes, strict=True)
        ],
    }
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(Path(summary["report"]), (text + "\n").encode())
        write_sheet([meshes[i] for i in chosen.values()], Path(summary["picture"]))
    except OSError as error:
        raise output_error(error, config.out) from error
