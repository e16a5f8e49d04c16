"""Where the files that ship with the program are."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def shipped(name: str) -> Path:
    """The folder of these assets: in a checkout beside the packages, else where a wheel puts it."""
    checkout = Path(__file__).resolve().parents[1] / "assets" / name
    installed = Path(sysconfig.get_path("data")) / "share" / "sds3d" / name
    return checkout if checkout.is_dir() else installed
