"""A teacher's network as a CUDA graph: what the host launched kernel by kernel is launched at once.

A network of many small kernels is asked faster than the host can launch them. A graph holds all
launches of one call, with the addresses that they used: inputs are copied to where they were, the
graph is replayed, and outputs are copied from where they lie. A call is captured where its shapes
come again and again and nothing wants a gradient. It is captured on other numbers than its own, so
that what the network reads on the host, and a graph would hold for good, shows: the first replay,
on the call's own, is held against the plain call, and where it differs, or anything fails, the
network is asked plainly from then on. Not run on a GPU by this project yet: the rules are tested
with a stand-in for CUDA's graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from core.out_of_memory import is_out_of_memory

__all__ = ["CudaGraphs", "Graphs", "graphed"]

CALLS_BEFORE = 2
"""Plain calls of the same shapes before one is captured."""

MOST_GRAPHS = 4
"""A graph keeps the memory of its call; what comes in more shapes than these is asked plainly."""

WARM_UP = 2
"""Calls on a stream of their own before the capture: libraries allocate at their first ones."""

TOLERANCE = 1e-2
"""Largest difference of a replay from the plain call, as a share of the largest value: kernels may
add in another order, in half precision."""


class Graphs(Protocol):
    """What captures launches and replays them."""

    def refusal(self, device: torch.device) -> str | None:
        """Why nothing can be captured on a device, None where it can."""
        ...

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """(replay, outputs): `replay` does again what `run` did, into the same outputs."""
        ...


class CudaGraphs:
    """Graphs of torch's CUDA streams."""

    def refusal(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"there are no CUDA graphs on the {device.type}"

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs


@dataclass(frozen=True, eq=False)
class _Captured:
    inputs: Sequence[Tensor]
    replay: Callable[[], object]
    outputs: Any

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.replay()
        return tree_map(lambda o: o.clone() if isinstance(o, Tensor) else o, self.outputs)


class _GraphedForward:
    """A module's forward, by graphs where they serve."""

    def __init__(self, module: nn.Module, graphs: Graphs, note: Callable[[str], None]) -> None:
        self._module = module
        self._forward: Callable[..., Any] = module.forward
        self._graphs = graphs
        self._note = note
        self._calls: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _Captured] = {}
        self._given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        elsewhere = any(self._graphs.refusal(tensor.device) for tensor in inputs)
        if self._given_up or trains or elsewhere:
            return self._forward(*args, **kwargs)
        key = self._key(leaves, str(structure))
        if key in self._captured:
            return self._captured[key](inputs)
        self._calls[key] += 1
        plain = self._forward(*args, **kwargs)
        if self._calls[key] > CALLS_BEFORE and len(self._captured) < MOST_GRAPHS:
            self._capture(key, leaves, structure, plain)
        return plain

    def _key(self, leaves: Sequence[Any], structure: str) -> Hashable:
        """What a captured call is tied to: the form of its inputs, and where the weights lie."""
        forms = [
            (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
            if isinstance(leaf, Tensor)
            else repr(leaf)
            for leaf in leaves
        ]
        weights = next(self._module.parameters(), None)
        return (structure, 0 if weights is None else weights.data_ptr(), *forms)

    @torch.no_grad()
    def _capture(self, key: Hashable, leaves: Sequence[Any], structure: Any, plain: Any) -> None:
        """Keep a graph of a call whose plain answer is known, or give graphs up."""
        static = [_other_numbers(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(static, structure)
        held = [leaf for leaf in static if isinstance(leaf, Tensor)]
        try:
            replay, outputs = self._graphs.capture(lambda: self._forward(*args, **kwargs))
            captured = _Captured(held, replay, outputs)
            replayed = captured([leaf for leaf in leaves if isinstance(leaf, Tensor)])
            same = _agree(replayed, plain)
        except Exception as error:  # whatever a library raises: the plain call has worked
            words = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
            self._give_up("the memory does not suffice" if is_out_of_memory(error) else words)
            return
        if same:
            self._captured[key] = captured
        else:
            self._give_up("the replay differs from the plain call")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._captured.clear()
        self._note(reason)


def _other_numbers(given: Tensor) -> Tensor:
    """A tensor of the same form whose every number is another one, in memory of its own.

    Numbers are halved, and zero and NaN become a quarter: what is an index stays one that there is.
    For the same reason the integer 0 alone stays as it is.
    """
    static = given.clone()
    if given.dtype is torch.bool:
        static.logical_not_()
    elif given.is_floating_point():
        half = 0.5 * given.nan_to_num()
        static.copy_(torch.where(half.abs() < 1e-3, torch.full_like(half, 0.25), half))
    elif not given.is_complex():
        static.div_(2, rounding_mode="trunc")
    return static


def _agree(found: Any, expected: Any) -> bool:
    """Whether all tensors of two answers are the same but for rounding."""
    pairs = zip(tree_flatten(found)[0], tree_flatten(expected)[0], strict=True)
    for one, other in pairs:
        if not isinstance(other, Tensor):
            continue
        bound = TOLERANCE * other.float().abs().max()
        if not bool((one.float() - other.float()).abs().max() <= bound):
            return False
    return True


@contextmanager
def graphed(
    teacher: object, *, note: Callable[[str], None], graphs: Graphs | None = None
) -> Iterator[None]:
    """Within the block the teacher's network is replayed from graphs where that serves.

    `note` hears once, in plain words, why it is not. The weights must stay where they are. The
    graphs' memory, that of one call for each, is given back at the end.
    """
    graphs = graphs or CudaGraphs()
    places = getattr(teacher, "lora_places", None)
    network = None if places is None else getattr(teacher, places.network, None)
    if not isinstance(network, nn.Module):
        note("this teacher does not say which network it asks")
        yield
        return
    weights = list(network.parameters())
    refusal = graphs.refusal(weights[0].device) if weights else "its network has no weights"
    if any(weight.requires_grad for weight in weights):
        refusal = "its network learns"
    if refusal is not None:
        note(refusal)
        yield
        return
    # An attribute of the one object: its class and what was copied of it stay as they are.
    network.forward = _GraphedForward(network, graphs, note)
    try:
        yield
    finally:
        del network.forward
