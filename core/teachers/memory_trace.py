"""How much memory tensors take, seen as they come and go, also where there is none of it.

On torch's meta device a tensor has a shape and no values. A program that runs there under a
`MemoryTrace` asks for the memory that it would take elsewhere, whatever the machine has.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MemoryTrace"]

_aten = torch.ops.aten
_attend = F.scaled_dot_product_attention


class MemoryTrace(TorchDispatchMode):
    """Counts, within the block, the bytes of all tensors that are alive on one kind of device.

    A storage counts once however many tensors view it, from the operation that makes it until
    nothing holds it: what autograd keeps for the backward pass is in it, what an operation needs
    inside of itself and what an allocator rounds up is not. Attention is counted as fused, as it
    runs on every device that is worth it: its scores are never held.

    On the meta device a question about values is answered as if all of them were sound: whether
    all are true, yes; whether any is, no. What is copied from it to another device is ones.

    Attributes:
        live: Bytes that are alive now.
        peak: The most that were at once.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.live = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._restore: list[Any] = []

    def __enter__(self) -> Self:
        # Of the module, not by a mode of torch's: no mode reaches what is computed again in a
        # backward pass.
        self._restore.append(F.scaled_dot_product_attention)
        F.scaled_dot_product_attention = _fused
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        F.scaled_dot_product_attention = self._restore.pop()

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count these from now on, made before the block or not."""
        for tensor in tensors:
            if tensor.device.type == self.device_type:
                self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.live -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        how = kwargs or {}
        if func in _QUESTIONS and args[0].device.type == "meta":
            return _QUESTIONS[func]()
        if func is _aten._to_copy.default and args[0].device.type == "meta":
            target = torch.device(how.get("device") or "meta")
            if target.type != "meta":
                return torch.ones(
                    args[0].shape, dtype=how.get("dtype") or args[0].dtype, device=target
                )
        out = func(*args, **how)
        self.count(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


_QUESTIONS: dict[Any, Callable[[], Any]] = {
    _aten.any.default: lambda: torch.tensor(False),
    _aten._local_scalar_dense.default: lambda: True,
}
"""The operations by which a program looks at values; bool() and float() ask the last one."""


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by one kernel, which keeps its inputs, its output and a number for each query.

    What torch would choose on the meta device holds every score.
    """
    if query.device.type != "meta":
        return _attend(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        raise NotImplementedError("attention with fewer keys than queries is in no teacher")
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
