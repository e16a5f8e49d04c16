"""Which methods a ground serves, in words; nothing heavy is imported, so that pages can ask too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROUND_HAS: Mapping[str, frozenset[str]] = {
    "mixture": frozenset({"class labels", "a classifier"}),
    "mixture-1d": frozenset(),
    "digits": frozenset({"class labels", "a classifier"}),
    "clouds": frozenset({"point clouds"}),
}
"""By the ground's name, what of the needs that some grounds meet and others do not it has."""


def ground_refusal(card: Mapping[str, Any], ground: str) -> str | None:
    """Why the method of `card` (catalogue.card_as_dict) cannot be tried there; None where it can.

    For what the card says; the method itself may refuse more when it is made.
    """
    has = GROUND_HAS[ground]
    everything = frozenset[str]().union(*GROUND_HAS.values())
    for need in card["needs"]:
        if need in everything - has:
            others = [name for name, found in GROUND_HAS.items() if need in found]
            none = "none" if need.endswith("s") else "no such thing"
            give = " or ".join(f"--teacher {name}" for name in others)
            return f"{card['name']} needs {need}, and the ground {ground} has {none}: give {give}"
    return None


def nfe_refusal(card: Mapping[str, Any], nfe: int) -> str | None:
    """Why the method's students cannot be sampled in `nfe` evaluations, as above.

    A method that is told the number when it is made (`makes_nfe`) judges it itself.
    """
    if card["makes_nfe"] or nfe in card["nfe"]:
        return None
    return f"{card['name']} is meant for --nfe {', '.join(map(str, card['nfe']))}, not for {nfe}"
