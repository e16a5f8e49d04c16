"""A table's rounding to float16, made once for each state that the table is in.

A step looks into the table several times, each time at the same numbers; rounding it whole each
time could cost more than the narrower lookups save.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["half"]

_Key = tuple[int, int]
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For each table, as long as there is one: its state and its rounding at that."""


def half(table: Tensor) -> Tensor:
    """The table in float16, without a gradient; kept until the table is written to.

    torch counts the writes to a tensor, but not those of its fused optimisers, so that nothing is
    kept past a step of any optimiser of torch's kind. What neither shows is a write into the memory
    of `table.data`, or by a foreign kernel outside an optimiser: use `table.detach()` for the one,
    and read the table as float32 with the other. Nothing is kept where a CUDA graph is captured,
    which is to round at each of its replays, nor of tensors of torch's inference mode, whose writes
    are not counted at all.
    """
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if capturing or table.is_inference():
        return _round(table)
    key: _Key = (table._version, table.data_ptr())
    kept: tuple[_Key, Tensor] | None = _kept.get(table)
    if kept is not None and kept[0] == key:
        return kept[1]
    # Ahead of the new one, so that there are never two.
    _kept.pop(table, None)
    rounded = _round(table)
    _kept[table] = key, rounded
    return rounded


def _forget(*_: object) -> None:
    _kept.clear()


register_optimizer_step_post_hook(_forget)


def _round(table: Tensor) -> Tensor:
    return table.detach().half()
