"""Train every distillation method on the proving grounds and write docs/distillation.md's tables.

    python scripts/distillation_table.py --ground mixture
    python scripts/distillation_table.py --ground digits --steps 1500 --batch 128 \
        --learning-rate 1e-3 --methods kd progressive ...
    python scripts/distillation_table.py --write     # tables and claims from what was measured

Each finished training is some lines of `<out>/<ground>.jsonl`; started again, the script goes on
after them. It goes seed by seed, so that all methods are there wherever it is stopped. The page
gets mean and standard deviation over the seeds, and what the papers claim, held against them
(distillation_claims.py).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import tyro
from torch import Tensor

from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.field.reflow import Reflow, transport_cost
from core.distillation.method import Distillation, Needs
from core.distillation.students import sample_by_solver
from core.solvers.ddim import DDIM
from core.solvers.heun import Heun
from core.solvers.sampling import log_snr_times
from core.solvers.unipc import UniPC
from core.training import DivergedError, train
from distillation_claims import claims_of, spread
from distillation_pictures import draw_one, sheet
from sds3d.distill.catalogue import METHODS, find_method, make_method
from sds3d.distill.digits import digits
from sds3d.distill.grounds import GroundName, NamedGround, named_ground
from sds3d.distill.measure import conditioning, digits_floor, draw, measure, teacher_samples
from sds3d.errors import BadInput

NFES = (1, 2, 4, 8)
TEACHER_NFES = (*NFES, 16, 64)
FEW = 2000
"""Samples where a figure needs no more: transport costs, and errors of solvers."""
SHARES: Mapping[str, float] = {
    "cd": 4, "ct": 4, "tract": 4, "lcm": 3, "ctm": 2, "shortcut": 2, "meanflow": 2,
    "progressive": 3, "vsd": 3, "diff-instruct": 3, "sid": 3,
    "scvm": 0.25, "sft-pg": 0.5,
}  # fmt: skip
"""Of the steps. More where what is learned at one time must first be learned at those below, where
each round adds its error to the last one's, and where a fake score that is trained once in a step
must follow; fewer where a step takes ten times as long as others'."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "distillation.md"
COLUMNS = {
    "sliced_wasserstein": "SW to data",
    "mmd": "MMD²",
    "to_teacher": "SW to teacher",
    "mode_weight_error": "mode weight error",
    "frechet": "Frechet",
    "chamfer": "Chamfer",
    "seconds": "training s",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train, and for how long."""

    ground: GroundName = "mixture"
    methods: tuple[str, ...] = ()
    """Names; all that the ground serves by default."""
    seeds: int = 3
    steps: int = 2000
    """Of each stage for progressive methods, in all for others."""
    learning_rate: float = 2e-3
    batch: int = 256
    samples: int = 10_000
    out: Path = Path(".training/table")
    write: bool = False
    """Train nothing: write docs/distillation.md's tables from all files in --out."""


def pictures(options: Options) -> Path:
    """Folder of the pictures of the first seed's students."""
    return options.out / "pictures" / options.ground


def students(
    method: type[Distillation], ground: NamedGround, options: Options, seed: int
) -> list[tuple[Distillation, list[int]]]:
    """The trainings that cover the NFE of the table: one for most, one each for some."""
    made: list[tuple[Distillation, list[int]]] = []
    wanted = [nfe for nfe in method.card.nfe if nfe in NFES]

    def make(nfe: int, steps: int) -> Distillation:
        return make_method(
            method, ground, steps=steps, nfe=nfe, batch=options.batch,
            learning_rate=options.learning_rate, seed=seed,
        )  # fmt: skip

    steps = round(options.steps * SHARES.get(method.card.name, 1.0))
    for nfe in wanted:
        one = make(nfe, steps)
        if isinstance(one, ProgressiveDistillation):
            # The rounds down to the last one leave all the students before it.
            return [(make(nfe, steps * len(one.stages())), wanted)]
        if made and getattr(one, "nfe", None) is None:
            made[0][1].append(nfe)
        else:
            made.append((one, [nfe]))
    return made


@cache
def without_labels(ground: NamedGround) -> NamedGround:
    """As most methods are tried there; the same object each time, for `converged`."""
    return ground.serving(METHODS[0].card)


def _serving(ground: NamedGround, method: type[Distillation]) -> NamedGround:
    return ground if Needs.LABELS in method.card.needs else without_labels(ground)


@cache
def converged(ground: NamedGround, n: int, seed: int) -> Tensor:
    """The teacher's samples that all students of a seed are compared with."""
    return teacher_samples(ground, n, seed + 1)


def rows_of(name: str, ground: NamedGround, options: Options, seed: int) -> list[dict[str, Any]]:
    """Figures of one method and seed at each NFE; one that diverges is a row that says so.

    `seconds` is the processor's time on one thread, so that what else runs does not count.
    """
    found = find_method(name)
    ground = _serving(ground, found)
    teacher = converged(ground, options.samples, seed)
    rows: list[dict[str, Any]] = []
    for method, nfes in students(found, ground, options, seed):
        head = {"method": name, "seed": seed, "steps": method.steps, "batch": options.batch}
        before = time.process_time()
        try:
            train(method, seed=seed)
        except DivergedError as error:
            rows += [{**head, "nfe": nfe, "diverged": str(error)} for nfe in nfes]
            continue
        head["seconds"] = time.process_time() - before
        if isinstance(method, Reflow):
            head["transport"] = transport_costs(method, ground, seed)
        for nfe in nfes:
            states, _ = draw(method, ground, nfe, options.samples, seed + 1)
            figures = measure(
                ground, states[-1], teacher, seed + 2, are_directions=method.makes_directions
            )
            rows.append({**head, "nfe": nfe, **figures})
        if seed == 0:
            # Of mixtures the longest way, of digits the hardest task.
            nfe = min(nfes) if ground.name == "digits" else max(nfes)
            draw_one(
                ground, method, nfe, options.out / "pictures" / ground.name / f"{name}-{nfe}.png"
            )
    return rows


@torch.no_grad()
def transport_costs(method: Reflow, ground: NamedGround, seed: int) -> list[float]:
    """E |x_T - x0|^2 of independent pairs, of the teacher's, and of each round's flow's, all from
    one noise."""
    generator = torch.Generator().manual_seed(seed + 1)
    cond = conditioning(ground, FEW, generator)
    x = method.noise(FEW, generator)
    costs = [transport_cost(x, ground.ground.data(FEW, generator).x0)]
    for number in range(method.rounds + 1):
        times = ground.ground.grid(64) if number == 0 else torch.linspace(1, 0, 65)
        costs.append(
            transport_cost(x, sample_by_solver(method.flow(number), DDIM(), x, times, cond)[-1])
        )
    return [float(cost) for cost in costs]


def teacher_rows(ground: NamedGround, options: Options, seed: int) -> list[dict[str, Any]]:
    """The teacher itself by DDIM in as many steps, and on a mixture the data once more."""
    many = converged(ground, options.samples, seed)
    if seed == 0:
        draw_one(ground, None, 64, pictures(options) / "teacher-64.png")
    rows = []
    for nfe in TEACHER_NFES:
        samples = teacher_samples(ground, options.samples, seed + 1, steps=nfe)
        figures = measure(ground, samples, many, seed + 2)
        rows.append({"method": "teacher", "seed": seed, "nfe": nfe, **figures})
    if ground.mixture is not None:
        again = ground.ground.data(options.samples, torch.Generator().manual_seed(seed + 9)).x0
        figures = measure(ground, again, many, seed + 2)
        rows.append({"method": "data", "seed": seed, "nfe": 0, **figures})
    return rows


@torch.no_grad()
def solver_rows(ground: NamedGround, options: Options, seed: int) -> list[dict[str, Any]]:
    """Root mean square distance of DDIM's and UniPC's samples to the converged ones of the noise.

    Converged is Heun's in 256 steps.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    cond = conditioning(ground, FEW, generator)
    x = ground.ground.noise(FEW, generator)
    teacher, even = ground.ground.teacher, ground.ground.grid
    wanted = sample_by_solver(teacher, Heun(), x, even(256), cond)[-1]
    rows = []
    for grid, times_of in (("t", even), ("log-SNR", partial(log_snr_grid, ground))):
        for name, solver in (("ddim", DDIM()), ("unipc", UniPC())):
            for nfe in (5, 10, 20):
                got = sample_by_solver(teacher, solver, x, times_of(nfe), cond)[-1]
                error = float((got - wanted).square().mean().sqrt())
                row = {"method": name, "seed": seed, "nfe": nfe, "grid": grid, "error": error}
                rows.append(row)
    return rows


def log_snr_grid(ground: NamedGround, steps: int) -> Tensor:
    """steps + 1 times from t_max to t_min: a first short step, for at pure noise the log-SNR is
    infinite, then equal ones in log-SNR, as arXiv 2302.04867 takes them on small images."""
    one = ground.ground
    even = log_snr_times(one.schedule, 0.97 * one.t_max, one.t_min, steps - 1)
    return torch.cat([torch.tensor([one.t_max], dtype=even.dtype), even]).float()


def markdown(rows: list[dict[str, Any]]) -> str:
    """Method and NFE by figure: mean ± the sample's standard deviation over seeds."""
    order = ["data", "teacher", *(m.card.name for m in METHODS)]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["method"] in order:
            groups[row["method"], row["nfe"]].append(row)
    figures = [k for k in COLUMNS if any(k in row for row in rows)]
    lines = [
        "| method | NFE | seeds | " + " | ".join(COLUMNS[k] for k in figures) + " |",
        "|---" * (len(figures) + 3) + "|",
    ]
    for (name, nfe), found in sorted(groups.items(), key=lambda g: (order.index(g[0][0]), g[0][1])):
        cells = []
        for figure in figures:
            values = [row[figure] for row in found if figure in row]
            if not values:
                cells.append("diverged" if "diverged" in found[0] else "")
            elif figure == "seconds":
                cells.append(f"{np.mean(values):.0f}")
            else:
                places = 2 if figure == "frechet" else 4
                bar = f" ± {spread(np.array(values)):.{places}f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.{places}f}{bar}")
        label = name if nfe == 0 else f"`{name}`"
        lines.append(f"| {label} | {nfe or ''} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; of two processes' rows of the same training, the first."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        rows.setdefault((row["method"], row["seed"], row["nfe"], row.get("grid")), row)
    return [*rows.values()]


def made(ground: NamedGround, options: Options, name: str, seed: int) -> list[dict[str, Any]]:
    if name == "teacher":
        ground = without_labels(ground)
        return teacher_rows(ground, options, seed) + solver_rows(ground, options, seed)
    return rows_of(name, ground, options, seed)


def wanted(options: Options) -> Iterator[tuple[int, str]]:
    names = options.methods or tuple(method.card.name for method in METHODS)
    for seed in range(options.seeds):
        for name in ("teacher", *names):
            yield seed, name


def write(options: Options) -> None:
    """Put the tables and the claims of every ground in --out between their marks of the page."""
    text = PAGE.read_text()
    claims: list[str] = []
    for name in get_args(GroundName):
        rows = read(options.out / f"{name}.jsonl")
        if not rows:
            continue
        body = markdown(rows)
        if name == "digits":
            floor, held = digits_floor(named_ground("digits")), len(digits()[1].images)
            body += (
                f"\n\nThe floor: the {held} real digits that nothing was trained on have a Frechet "
                f"distance of {floor:.2f},\nand 10,000 samples of a good student are nearer: see "
                "below."
            )
        text = between(text, f"table {name}", body)
        claims += claims_of(name, rows)
        folder = pictures(replace(options, ground=name))
        sheet(name, folder, PAGE.with_name(f"distillation-{name}.png"))
    head = "| claim | ground | measured | verdict |\n|---|---|---|---|\n"
    PAGE.write_text(between(text, "claims", head + "\n".join(claims)))


def between(text: str, mark: str, body: str) -> str:
    """`text` with `body` between the marks. Raises ValueError where they are missing."""
    new, count = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)",
        lambda found: f"{found[1]}{body}\n{found[2]}",
        text,
        flags=re.S,
    )
    if count != 1:
        raise ValueError(f"the page has {count} places marked {mark!r}, not one")
    return new


def main(options: Options) -> None:
    if options.write:
        write(options)
        return
    torch.set_num_threads(1)  # such small networks are faster on one
    ground = named_ground(options.ground)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.ground}.jsonl"
    for seed, name in wanted(options):
        # Looked at anew: another process may fill the same file.
        if any((row["seed"], row["method"]) == (seed, name) for row in read(path)):
            continue
        try:
            new = made(ground, options, name, seed)
        except BadInput as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        for row in new:
            print(row, file=sys.stderr, flush=True)
    print(markdown(read(path)))


if __name__ == "__main__":
    main(tyro.cli(Options))
