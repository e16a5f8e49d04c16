"""Make the Janus part of docs/methods.md: how many sides of a mesh pass for its front?

    python scripts/janus.py

A teacher that is not told the camera is asked the same from every side, and an object may grow a
front on each of them (the Janus problem). Meshes of kinds with a front are made by a teacher that
takes no camera: as it is, with prompts that name the view, and with Perp-Neg beside these; and by
one of the same world that takes it. The seeds are the same. Three figures, on the file, against
exact renders of the prompt's own scene:

    azimuth  that of `sds3d evaluate`: the share of 24 views whose best match lies within 30
             degrees of the side that they show;
    turned   the same for the turn of the whole mesh that suits it best: an object that merely
             looks another way has this one right, one with two fronts has not;
    fronts   of the seven views every 45 degrees but the front's, the share that is nearer to the
             exact front than to the exact side that it should show.

Exact renders in the place of the mesh, and their front shown on every side, give the two ends.
Runs that are finished in --work are taken as they are.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import tyro

from compare_methods import Made, caption, make, sheet, spec_of
from method_runs import counted_parts, is_finished, write_part
from sds3d.config import DeviceName, GenerateConfig, PresetName
from sds3d.errors import Sds3dError
from sds3d.evaluate.compare import Evaluated, paired_difference
from sds3d.evaluate.layers import AZIMUTHS_DEG, Reference, Shape, color_weights, exact_views, pool
from sds3d.evaluate.matching import BETWEEN_DEG, TOLERANCE_DEG, view_distances
from sds3d.evaluate.measure import Judge
from sds3d.evaluate.raycast import read_glb, render, require_embree
from sds3d.evaluate.references import References, cache_folder
from sds3d.optimize_config import OptimizeConfig
from sds3d.presets import PRESETS, generate_config
from sds3d.toybox.captions import plain_caption
from sds3d.toybox.scenes import SceneSpec

Setting = Literal["no words", "view prompts", "Perp-Neg", "camera"]

SETTINGS: dict[Setting, dict[str, Any]] = {
    "no words": {"camera_conditioning": False},
    "view prompts": {"camera_conditioning": False, "view_prompts": "interpolated"},
    "Perp-Neg": {"camera_conditioning": False, "view_prompts": "interpolated", "perp_neg": True},
    "camera": {},
}

EVERY = 3
"""Of the references' azimuths, 15 degrees apart, every third is looked at for `fronts`."""

_CEILING_VARIATION = 4000  # none of the references


@dataclass(frozen=True, kw_only=True)
class JanusConfig:
    """Measure how many sides of a mesh pass for its front, with and without view prompts."""

    settings: tuple[Setting, ...] = get_args(Setting)
    """Rows of the table and of the picture."""
    prompts: tuple[str, ...] = (
        *("yellow duck", "blue chair", "green teapot", "red car"),
        *("pink mug", "white rabbit", "gray robot", "orange fish"),
    )
    """As colour and kind; the kind must have a front."""
    shown: int = 4
    """How many of them, the first ones, the picture shows."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the runs; the picture shows the first."""
    guidance_scale: float = OptimizeConfig.guidance_scale
    """Guidance of all runs."""
    preset: PresetName = "fast"
    """Options of the runs but for these."""
    teacher: str = "toybox-words"
    """A teacher of the toybox world; it is not told the camera."""
    camera_teacher: str = "toybox"
    """The one that is."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    finished: bool = False
    """Show the meshes that are finished, and make no others."""
    work: Path = Path("outputs/janus")
    """Folder of the runs."""
    out: Path = Path("docs/janus.png")
    """The PNG."""
    page: Path = Path("docs/methods.md")
    """The page of which a part is written anew."""
    mark: str = "janus"
    """Between which marks of the page that part lies."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What the views of one thing say of its sides, each in [0, 1]; see the module."""

    azimuth: float
    turned: float
    fronts: float


NO_SIDES = Sides(azimuth=0.0, turned=0.0, fronts=1.0)
"""Of a run without a mesh: a miss in every figure."""


def sides(reference: Reference, weights: np.ndarray, views: np.ndarray) -> Sides:
    """The figures of 24 + 24 pooled views [48, P, 4], at the references' azimuths and between them.

    weights: one colouring, [1, 4, 6].
    """
    count = len(AZIMUTHS_DEG)
    distances = view_distances(reference, weights, views, all_azimuths=True)[0].min(axis=0)
    best = AZIMUTHS_DEG[distances[:, count:].argmin(axis=0)]
    by_turn = [_share_within(best, BETWEEN_DEG + turn) for turn in AZIMUTHS_DEG]
    shown = np.arange(EVERY, count, EVERY)
    fronts = distances[0, shown] < distances[shown, shown]
    return Sides(azimuth=by_turn[0], turned=max(by_turn), fronts=float(fronts.mean()))


def _share_within(found_deg: np.ndarray, asked_deg: np.ndarray) -> float:
    away = np.abs((found_deg - asked_deg + 180.0) % 360.0 - 180.0)
    return float((away < TOLERANCE_DEG).mean())


def exact_sides(spec: SceneSpec, references: References) -> tuple[Sides, Sides]:
    """Those of another exact variation, and of one that shows its front on every side."""
    azimuths = np.concatenate([AZIMUTHS_DEG, BETWEEN_DEG])
    views = pool(exact_views(spec, _CEILING_VARIATION, azimuths, frame=references.frame))
    reference, weights = references(Shape.of(spec)), color_weights([(spec.color, None)])
    everywhere = np.broadcast_to(views[:1], views.shape)
    return sides(reference, weights, views), sides(reference, weights, everywhere)


def sides_of(made: Made, spec: SceneSpec, references: References) -> Sides:
    """Those of the mesh of a run."""
    if made.folder is None or made.measured.nearest is None:
        return NO_SIDES
    seen = read_glb(made.folder / "mesh.glb")
    views = pool(render(seen, np.concatenate([AZIMUTHS_DEG, BETWEEN_DEG])))
    return sides(references(Shape.of(spec)), color_weights([(spec.color, None)]), views)


def options(config: JanusConfig, setting: Setting) -> OptimizeConfig:
    """Of a run in this setting."""
    chosen = PRESETS[config.preset].optimize
    return dataclasses.replace(chosen, guidance_scale=config.guidance_scale, **SETTINGS[setting])


def teacher_of(config: JanusConfig, setting: Setting) -> str:
    """Who judges the runs in this setting."""
    return config.camera_teacher if setting == "camera" else config.teacher


def request(config: JanusConfig, setting: Setting, prompt: str, seed: int) -> GenerateConfig:
    """The run of a prompt in a setting."""
    return generate_config(
        config.preset,
        prompt=plain_caption(spec_of(prompt)),
        seed=seed,
        teacher=teacher_of(config, setting),
        device=config.device,
        out=config.work,
        optimize=options(config, setting),
    )


Cell = tuple[Made, Sides] | None
"""A mesh and its figures; None where it is not made yet."""


def table(rows: Mapping[Setting, Sequence[Cell]], ends: list[tuple[Sides, Sides]]) -> str:
    """A line for each setting, and the two ends."""
    lines = [
        "| | azimuth | at its best turn | fronts | R-Precision | silhouette IoU |",
        "|---|---|---|---|---|---|",
    ]
    for setting, cells in rows.items():
        found = [cell for cell in cells if cell is not None]
        if not found:
            continue
        measured = [made.measured for made, _ in found]
        lines.append(
            f"| {setting} | {_means([one for _, one in found])} "
            f"| {sum(one.retrieved for one in measured)} of {len(measured)} "
            f"| {fmean(one.silhouette_iou for one in measured):.2f} |"
        )
    for end, name in enumerate(("exact renders", "their front on every side")):
        lines.append(f"| *{name}* | {_means([pair[end] for pair in ends])} | | |")
    return "\n".join(lines)


def _means(found: list[Sides]) -> str:
    """The three figures' means, as cells."""
    names = ("azimuth", "turned", "fronts")
    return " | ".join(f"{fmean(getattr(one, name) for one in found):.0%}" for name in names)


def gains(config: JanusConfig, rows: Mapping[Setting, Sequence[Cell]]) -> str:
    """What each setting adds to the first one, prompt by prompt, where both are whole.

    The intervals hold 95 %: a bootstrap that draws whole prompts, with all their seeds.
    """
    keys = [(seed, prompt) for seed in config.seeds for prompt in config.prompts]
    measured: dict[Setting, list[Evaluated]] = {
        setting: [
            Evaluated(seed=seed, prompt=prompt, row=dataclasses.asdict(cell[1]))
            for (seed, prompt), cell in zip(keys, cells, strict=True)
            if cell is not None
        ]
        for setting, cells in rows.items()
    }
    whole: list[Setting] = [name for name in rows if len(measured[name]) == len(keys)]
    if len(whole) < 2:
        return ""
    lines = [
        f"| beside {whole[0]}, in points | azimuth | at its best turn | fronts |",
        "|---|---|---|---|",
    ]
    for setting in whole[1:]:
        cells = []
        for figure in ("azimuth", "turned", "fronts"):
            found = paired_difference(measured[whole[0]], measured[setting], figure)
            cells.append(
                f"{100 * found.difference:+.0f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
            )
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def described(config: JanusConfig, hashes: Sequence[str]) -> str:
    """The picture, and how all of it was made."""
    seeds = ", ".join(str(seed) for seed in config.seeds)
    shown = len(config.prompts[: config.shown])
    return (
        f"![{shown} prompts, each from four sides, in {len(config.settings)} settings]"
        f"({config.out.name})\n\n"
        f"Preset `{config.preset}`, `--method sds`, guidance {config.guidance_scale:g}, weights "
        f"{' and '.join(f'`{one[:12]}`' for one in hashes)}, "
        f"means over {', '.join(config.prompts)} with the seeds {seeds}; "
        "the picture shows the first of both from the front, the right, the back and the left."
    )


def main() -> int:
    config = tyro.cli(JanusConfig, config=(tyro.conf.FlagCreatePairsOff,))
    config.work.mkdir(parents=True, exist_ok=True)
    references = References(cache_folder() / "references")
    judge = Judge(references, seed=0)
    rows: dict[Setting, list[Cell]] = {}
    try:
        require_embree()
        names = dict.fromkeys(teacher_of(config, setting) for setting in config.settings)
        teachers = {name: counted_parts(name, config.device)[:2] for name in names}
        for setting in config.settings:
            parts, teacher = teachers[teacher_of(config, setting)]
            rows[setting] = []
            for seed in config.seeds:
                for prompt in config.prompts:
                    given = request(config, setting, prompt, seed)
                    if config.finished and not is_finished(given, teacher.weights_sha256):
                        rows[setting].append(None)
                        continue
                    made = make(given, spec_of(prompt), parts, judge)
                    found = sides_of(made, spec_of(prompt), references)
                    rows[setting].append((made, found))
                    print(
                        f"{setting}, {prompt}, seed {seed}: {caption(made.measured)}, {found}",
                        file=sys.stderr,
                        flush=True,
                    )
    except Sds3dError as error:
        print(f"janus: {error}", file=sys.stderr)
        return error.exit_code
    ends = [exact_sides(spec_of(prompt), references) for prompt in config.prompts]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    first = config.prompts[: config.shown]
    shown = {
        name: [None if cell is None else cell[0] for cell in cells[: len(first)]]
        for name, cells in rows.items()
    }
    sheet(shown, first).save(config.out, optimize=True)
    hashes = [teacher.weights_sha256 for _, teacher in teachers.values()]
    parts_of_page = [described(config, hashes), table(rows, ends), gains(config, rows)]
    part = "\n\n".join(filter(None, parts_of_page))
    write_part(config.page, config.mark, part)
    print(part)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
