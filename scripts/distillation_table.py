"""Train every distillation method on the proving grounds and make docs/distillation.md's table.

    python scripts/distillation_table.py --ground mixture --out students/table
    python scripts/distillation_table.py --ground digits --steps 4000 --out students/table

Each finished training is one line of `<out>/<ground>.jsonl`; started again, the script goes on
after them. The table is printed as Markdown: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from core.distillation.method import Distillation
from core.training import DivergedError, train
from sds3d.distill.catalogue import METHODS, find_method, make_method
from sds3d.distill.grounds import GroundName, NamedGround, named_ground
from sds3d.distill.measure import digits_floor, draw, measure, teacher_samples
from sds3d.errors import BadInput

NFES = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train, and for how long."""

    ground: GroundName = "mixture"
    methods: tuple[str, ...] = ()
    """Names; all by default."""
    seeds: int = 3
    steps: int = 2000
    learning_rate: float = 2e-3
    batch: int = 256
    samples: int = 10_000
    out: Path = Path("students/table")


def students(
    method: type[Distillation], ground: NamedGround, options: Options, seed: int
) -> list[tuple[Distillation, list[int]]]:
    """The trainings that cover the NFE of the table: one for most, one each for some."""
    made: list[tuple[Distillation, list[int]]] = []
    for nfe in NFES:
        if nfe not in method.card.nfe:
            continue
        one = make_method(
            method, ground, steps=options.steps, nfe=nfe, batch=options.batch,
            learning_rate=options.learning_rate, seed=seed,
        )  # fmt: skip
        if made and getattr(one, "nfe", None) is None:
            made[0][1].append(nfe)
        else:
            made.append((one, [nfe]))
    return made


def rows_of(name: str, ground: NamedGround, options: Options, seed: int) -> list[dict[str, Any]]:
    """Figures of one method and seed at each NFE; one that diverges is a row that says so."""
    teacher = teacher_samples(ground, options.samples, seed + 1)
    rows: list[dict[str, Any]] = []
    for method, nfes in students(find_method(name), ground, options, seed):
        head = {"method": name, "seed": seed, "steps": options.steps}
        try:
            history = train(method, seed=seed)
        except DivergedError as error:
            rows += [{**head, "nfe": nfe, "diverged": str(error)} for nfe in nfes]
            continue
        for nfe in nfes:
            states, _ = draw(method, ground, nfe, options.samples, seed + 1)
            figures = measure(ground, states[-1], teacher, seed + 2)
            rows.append({**head, "nfe": nfe, "seconds": history.seconds, **figures})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Method and NFE by figure: mean ± standard deviation over seeds."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["nfe"]].append(row)
    figures = [k for k in rows[0] if k not in ("method", "seed", "steps", "nfe")]
    lines = ["| method | NFE | " + " | ".join(figures) + " |", "|---" * (len(figures) + 2) + "|"]
    order = ["teacher", *(m.card.name for m in METHODS)]
    for (name, nfe), found in sorted(groups.items(), key=lambda g: (order.index(g[0][0]), g[0][1])):
        cells = []
        for figure in figures:
            values = [row[figure] for row in found if figure in row]
            if not values:
                cells.append("diverged")
            elif figure == "seconds":
                cells.append(f"{np.mean(values):.0f}")
            else:
                cells.append(f"{np.mean(values):.4f} ± {np.std(values):.4f}")
        lines.append(f"| {name} | {nfe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    torch.set_num_threads(1)  # such small networks are faster on one
    ground = named_ground(options.ground)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.ground}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    names = options.methods or tuple(method.card.name for method in METHODS)
    for seed in range(options.seeds):
        for name in ("teacher", *names):
            if (name, seed) in done:
                continue
            try:
                if name == "teacher":
                    new = teacher_rows(ground, options, seed)
                else:
                    new = rows_of(name, ground, options, seed)
            except BadInput as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
            rows += new
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
            for row in new:
                print(row, file=sys.stderr, flush=True)
    print(markdown(rows))
    if options.ground == "digits":
        print(f"\nReal digits nothing was trained on: Frechet {digits_floor(ground):.2f}.")


def teacher_rows(ground: NamedGround, options: Options, seed: int) -> list[dict[str, Any]]:
    """The teacher itself by DDIM in as many steps."""
    converged = teacher_samples(ground, options.samples, seed + 1)
    rows = []
    for nfe in (*NFES, 64):
        samples = teacher_samples(ground, options.samples, seed + 1, steps=nfe)
        figures = measure(ground, samples, converged, seed + 2)
        rows.append(
            {"method": "teacher", "seed": seed, "steps": 0, "nfe": nfe, "seconds": 0.0, **figures}
        )
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options))
