"""Make the table and the picture of docs/methods.md: what each method makes of a mesh.

    python scripts/compare_methods.py --pace
    python scripts/compare_methods.py

Every mesh is a run of `sds3d generate` with the same teacher, preset and seed, so that what differs
is the method, with the options of `RECIPES` where the defaults are not its own. The figures are
those of `sds3d evaluate`, on the file. Runs that are finished in --work are taken as they are, so
that a second call goes on where the first was stopped; a run without a mesh is a miss in every
figure.

With --pace no mesh is made: some steps of every method are made in turns, and their seconds and
passes of the network noted in --work for the table of a later call.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
import tyro
from PIL import Image, ImageDraw

from draw_gallery import views_of
from method_runs import RECIPES, Passes, counted_parts, is_finished, write_part
from sds3d.atomic import write_atomic
from sds3d.config import DeviceName, GenerateConfig, PresetName
from sds3d.device import resolve_device
from sds3d.errors import BadInput, Interrupted, Sds3dError
from sds3d.evaluate.measure import Judge, Measured
from sds3d.evaluate.raycast import require_embree
from sds3d.evaluate.references import References, cache_folder
from sds3d.generate import Parts, generate
from sds3d.optimize import Optimization, StepClock, Teacher
from sds3d.optimize_config import MethodName, OptimizeConfig
from sds3d.presets import PRESETS, generate_config
from sds3d.require import require_number
from sds3d.toybox.captions import plain_caption
from sds3d.toybox.scenes import SceneSpec, is_held_out

TILE = 76
GAP = 8
LEFT, TOP, CAPTION = 104, 22, 16
SIDES = (0, 2, 4, 6)
"""Which of a contact sheet's eight views are shown: front, side, back, other side."""

WARM_UP = 2
"""Steps of each method that are made and not timed."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Compare the methods of score distillation by the meshes that they make."""

    methods: tuple[MethodName, ...] = get_args(MethodName)
    """Rows of the table and of the picture; sds among them for --pace."""
    prompts: tuple[str, ...] = ("yellow duck", "blue chair", "pink teapot", "red mushroom")
    """Columns, as colour and kind."""
    seed: int = 0
    """Seed of each run."""
    preset: PresetName = "fast"
    """Options of the runs but for the method and its own."""
    teacher: str = "toybox"
    """The embedded teacher, or the folder of one."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    work: Path = Path("outputs/methods")
    """Folder of the runs."""
    out: Path = Path("docs/methods.png")
    """The PNG."""
    page: Path = Path("docs/methods.md")
    """The page whose part between the marks "meshes" is written anew."""
    finished: bool = False
    """Show the meshes that are finished, and make no others."""
    pace: bool = False
    """Time the methods instead of making meshes."""
    pace_steps: int = 30
    """Steps of each method that --pace times."""

    def __post_init__(self) -> None:
        require_number("--pace-steps", self.pace_steps, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a step of a method costs.

    Attributes:
        step_ms: Mean milliseconds of a step, all its parts.
        passes: Samples that the networks were asked about for each view of a step.
    """

    step_ms: float
    passes: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """One mesh; `folder` is None where there is none."""

    measured: Measured
    folder: Path | None


def spec_of(prompt: str) -> SceneSpec:
    """The scene of "yellow duck"."""
    color, kind = prompt.split()
    return SceneSpec(kind=kind, color=color)


def options(preset: PresetName, method: MethodName) -> OptimizeConfig:
    """Of a run of this method."""
    chosen = PRESETS[preset].optimize
    return dataclasses.replace(chosen, method=method, **RECIPES.get(method, {}))


def request(config: ComparisonConfig, prompt: str, optimize: OptimizeConfig) -> GenerateConfig:
    """The run of a prompt with these options."""
    return generate_config(
        config.preset,
        prompt=plain_caption(spec_of(prompt)),
        seed=config.seed,
        teacher=config.teacher,
        device=config.device,
        out=config.work,
        optimize=optimize,
    )


def make(given: GenerateConfig, spec: SceneSpec, parts: Parts, judge: Judge) -> Made:
    """Do the run, or take the one that is there, and measure its mesh.

    A run that ends without a mesh is a miss; a request that no run could fulfil raises.
    """
    try:
        done = generate(given, parts=parts)
    except (BadInput, Interrupted):
        raise
    except Sds3dError as error:
        return Made(measured=judge.missing(spec, str(error)), folder=None)
    measured = judge.measure(spec, done.folder / "mesh.glb")
    return Made(measured=measured, folder=done.folder)


def measure_pace(
    config: ComparisonConfig, teacher: Teacher, counter: Passes
) -> dict[MethodName, Pace]:
    """Time the methods in turns, a step of each, through all of a run's times and resolutions.

    So whatever else the machine does meets all of them alike.
    """
    steps = config.pace_steps + WARM_UP
    loops: dict[MethodName, Optimization] = {}
    for method in config.methods:
        chosen = dataclasses.replace(options(config.preset, method), steps=steps)
        given = request(config, config.prompts[0], chosen)
        given = dataclasses.replace(given, device=resolve_device(given.device))
        loops[method] = Optimization(given, teacher)
    seconds, samples = dict.fromkeys(loops, 0.0), dict.fromkeys(loops, 0)
    for step in range(steps):
        for method, loop in loops.items():
            counter.samples = 0
            _wait(loop.device)
            began = time.perf_counter()
            loop.advance(StepClock())
            _wait(loop.device)
            if step >= WARM_UP:
                seconds[method] += time.perf_counter() - began
                samples[method] += counter.samples
    return {
        method: Pace(
            step_ms=round(1000 * seconds[method] / config.pace_steps, 2),
            passes=round(samples[method] / config.pace_steps / loop.options.views_per_step, 2),
        )
        for method, loop in loops.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_pace(work: Path) -> dict[str, Any]:
    """What an earlier --pace noted, empty without one."""
    path = work / "pace.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def own_options(method: MethodName) -> str:
    """What is given beside --method, as on the command line."""
    given = RECIPES.get(method, {}).items()
    return " ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in given)


def table(
    rows: Mapping[MethodName, Sequence[Made | None]], pace: dict[str, Any], run_steps: int
) -> str:
    """A line for each method that made anything; None is a mesh that is not made yet.

    The seconds are those of a run's optimisation, `run_steps` of the steps that --pace timed: the
    runs themselves may share the machine.
    """
    lines = [
        "| `--method` | options beside it | R-Precision | silhouette IoU | F-score | azimuth | "
        "passes per view | step, to `sds` | seconds at that pace |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps = pace.get("methods", {})
    base = steps.get("sds", {}).get("step_ms")
    for method, cells in rows.items():
        made = [one for one in cells if one is not None]
        if not made:
            continue
        found = [one.measured for one in made]
        azimuths = [one.azimuth for one in found if one.azimuth is not None]
        step = steps.get(method)
        columns = [
            f"`{method}`",
            own_options(method),
            f"{sum(one.retrieved for one in found)} of {len(found)}",
            f"{fmean(one.silhouette_iou for one in found):.2f}",
            f"{fmean(one.f_score for one in found):.2f}",
            f"{fmean(azimuths):.0%}" if azimuths else "-",
            f"{step['passes']:g}" if step else "-",
            f"{step['step_ms'] / base:.1f}" if step and base else "-",
            f"{step['step_ms'] * run_steps / 1000:.0f}" if step else "-",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def described(config: ComparisonConfig, weights_sha256: str, pace: dict[str, Any]) -> str:
    """The picture, and how all of it was made."""
    held_out = [p for p in config.prompts if is_held_out(spec_of(p).kind, spec_of(p).color)]
    text = (
        f"![Meshes of {len(config.methods)} methods on {len(config.prompts)} prompts, from four "
        f"sides]({config.out.name})\n\n"
        f"Preset `{config.preset}`, seed {config.seed}, teacher `{weights_sha256[:12]}`; "
        f"{', '.join(config.prompts)}"
    )
    if held_out:
        text += f" (the teacher never saw a {', a '.join(held_out)})"
    text += (
        ". From the front, the right, the back and the left; below them the kind and colour that "
        "the mesh is nearest to where they are not the ones asked for, IoU, and azimuth where "
        "exact renders tell it."
    )
    if pace:
        text += (
            f" Steps were timed by --pace, {pace['steps']} of each method in turns on "
            f"{pace['threads']} CPU threads: {pace['methods']['sds']['step_ms']:.0f} ms with "
            "`sds`; the seconds are those of a run's optimisation at that pace."
        )
    return text


def sheet(rows: Mapping[str, Sequence[Made | None]], prompts: tuple[str, ...]) -> Image.Image:
    """Four sides of each mesh, the rows' names on the left and the prompts above."""
    width, height = len(SIDES) * TILE + GAP, TILE + CAPTION
    picture = Image.new("RGB", (LEFT + len(prompts) * width, TOP + len(rows) * height), "white")
    draw = ImageDraw.Draw(picture)
    for column, prompt in enumerate(prompts):
        draw.text((LEFT + column * width + 4, 6), prompt, fill="black")
    for row, (name, made) in enumerate(rows.items()):
        y = TOP + row * height
        draw.text((6, y + TILE // 2 - 6), name, fill="black")
        for column, one in enumerate(made):
            x = LEFT + column * width
            if one is None:
                draw.text((x + 4, y + TILE + 1), "not made yet", fill="black")
                continue
            if one.folder is not None:
                for i, tile in enumerate(views_of(one.folder, SIDES, TILE)):
                    picture.paste(tile, (x + i * TILE, y))
            draw.text((x + 4, y + TILE + 1), caption(one.measured), fill="black")
    return picture


def caption(measured: Measured) -> str:
    """A mesh's figures in few words."""
    if measured.nearest is None:
        return "no mesh"
    text = "" if measured.retrieved else f"like {measured.nearest}, "
    text += f"IoU {measured.silhouette_iou:.2f}"
    return text if measured.azimuth is None else f"{text}, azimuth {measured.azimuth:.0%}"


def main() -> int:
    config = tyro.cli(ComparisonConfig, config=(tyro.conf.FlagCreatePairsOff,))
    config.work.mkdir(parents=True, exist_ok=True)
    rows: dict[MethodName, list[Made | None]] = {}
    try:
        require_embree()
        parts, teacher, counter = counted_parts(config.teacher, config.device)
        if config.pace:
            found = {
                name: vars(pace) for name, pace in measure_pace(config, teacher, counter).items()
            }
            noted = {
                "steps": config.pace_steps,
                "threads": torch.get_num_threads(),
                "methods": found,
            }
            write_atomic(config.work / "pace.json", json.dumps(noted, indent=1).encode())
            print(json.dumps(noted))
            return 0
        judge = Judge(References(cache_folder() / "references"), config.seed)
        for method in config.methods:
            rows[method] = []
            for prompt in config.prompts:
                given = request(config, prompt, options(config.preset, method))
                if config.finished and not is_finished(given, teacher.weights_sha256):
                    rows[method].append(None)
                    continue
                one = make(given, spec_of(prompt), parts, judge)
                rows[method].append(one)
                print(f"{method}, {prompt}: {caption(one.measured)}", file=sys.stderr, flush=True)
    except Sds3dError as error:
        print(f"compare_methods: {error}", file=sys.stderr)
        return error.exit_code
    pace = read_pace(config.work)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    shown: dict[str, list[Made | None]] = {**rows}
    sheet(shown, config.prompts).save(config.out, optimize=True)
    run_steps = PRESETS[config.preset].optimize.steps
    part = f"{described(config, teacher.weights_sha256, pace)}\n\n{table(rows, pace, run_steps)}"
    write_part(config.page, "meshes", part)
    print(part)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
