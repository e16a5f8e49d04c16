"""Imported for its effect by the process that children are forked from: all is loaded and has run.

One thread, so that no thread is missing in a child, and so that all children make the same bits.
"""

import tempfile
from pathlib import Path

import torch

from . import cheap

torch.set_num_threads(1)
with tempfile.TemporaryDirectory(prefix="sds3d-warm-") as _folder:
    _said = cheap.command(cheap.words_of(Path(_folder)), parts=cheap.make_parts())
    if _said.code != 0:
        raise RuntimeError(f"the run that warms up failed: {_said.err}")
