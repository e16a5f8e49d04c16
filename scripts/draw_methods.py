"""Write the parts of docs/distillation.md that are made from the code: cards, and MeanFlow.

python scripts/draw_methods.py
"""

from __future__ import annotations

import re
from pathlib import Path

from sds3d.distill.catalogue import METHODS
from sds3d.distill.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "distillation.md"
EXAMPLE = ROOT / "core" / "distillation" / "field" / "mean_flow.py"


def cards() -> str:
    """All methods by family, a line each."""
    lines: list[str] = []
    for family in dict.fromkeys(method.card.family for method in METHODS):
        lines += [
            "",
            f"**{family.value[0].upper()}{family.value[1:]}**",
            "",
            "| method | | student | needs | NFE | loss | reference |",
            "|---|---|---|---|---|---|---|",
        ]
        for card in (m.card for m in METHODS if m.card.family is family):
            needs = ", ".join(sorted(need.value for need in card.needs))
            nfe = ", ".join(map(str, card.nfe))
            equation = card.equation.replace("|", "\\|")
            lines.append(
                f"| `{card.name}` | {card.title}. {card.idea} | {card.student.value} | {needs} "
                f"| {nfe} | `{equation}` | {card.reference} |"
            )
    return "\n".join(lines[1:])


def samplers() -> str:
    """All samplers, a line each."""
    lines = [
        "| sampler | | order | calls in a step | rule | where | reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in SAMPLERS:
        equation = card.equation.replace("|", "\\|")
        lines.append(
            f"| `{card.name}` | {card.title}. {card.idea} | {card.order} | {card.calls} "
            f"| `{equation}` | `{card.made_by.removeprefix('core.solvers.')}` | {card.reference} |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """`text` with its made parts made anew."""
    for name, body in (
        ("cards", cards()),
        ("samplers", samplers()),
        ("meanflow", f"```python\n{EXAMPLE.read_text()}```"),
    ):
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text = re.sub(
            pattern, lambda _, n=name, b=body: f"<!-- {n} -->\n{b}\n<!-- /{n} -->", text, flags=re.S
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
