"""What a run optimises, as far as the loop knows it: something that shows itself from views.

A radiance field and a plain image are two of them; the loop asks for pictures, hands them to the
teacher, and moves the parameters. Another one is another class and a line in `sds3d.targets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .events import Listener
from .views import Views

if TYPE_CHECKING:
    from .config import GenerateConfig

__all__ = ["ParameterGroup", "Representation", "Shown"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ParameterGroup:
    """Parameters and Adam's rate for them at the start."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What the views of one step showed.

    Attributes:
        images: [V, 3, H, W] in [0, 1], differentiable; where `latent`, what the teacher's
            autoencoder would make of them, [V, C, h, w].
        opacity: [V, H, W], detached; 1 where everything is covered.
        samples: Points at which the field was asked; 0 where there is none.
        penalty: The weighted regularisers of what was shown, a scalar with a gradient. Draws from
            the generator it is given.
    """

    images: Tensor
    opacity: Tensor
    samples: int
    penalty: Callable[[torch.Generator], Tensor]
    latent: bool = False


class Representation(Protocol):
    """What is optimised; an nn.Module whose state_dict is all that a checkpoint needs of it.

    All randomness comes from the generators, so that a resumed run repeats the uninterrupted one.
    """

    @property
    def finest_side(self) -> int:
        """Side in pixels of what is shown at the end of a run."""
        ...

    def groups(self) -> Sequence[ParameterGroup]:
        """Every trained parameter, each in one group, in an order that never changes."""
        ...

    def prepare(self, turn: int, generator: torch.Generator) -> None:
        """What is to be done before this turn (from 0), outside the gradient."""
        ...

    def views(self, generator: torch.Generator) -> Views:
        """The cameras of a step."""
        ...

    def around(self, count: int, elevation_deg: float) -> Views:
        """`count` cameras to look at it from, evenly around where there is an around."""
        ...

    def show(self, views: Views, progress: float, generator: torch.Generator) -> Shown:
        """Pictures from the views, at this progress in [0, 1]."""
        ...

    def pictures(self, views: Views, side: int, background: float) -> Tensor:
        """[V, 3, side, side] in [0, 1] to look at, without a gradient and without randomness."""
        ...

    def complaint(self, shown: Shown) -> str | None:
        """What is wrong with what was shown in plain words, None if nothing is."""
        ...

    def write_files(
        self, config: GenerateConfig, folder: Path, on_event: Listener
    ) -> dict[str, Any]:
        """Write the files for the user to `folder`; returns what was measured.

        Emits the stages it has and returns their wall time under "seconds". Raises EmptyField or
        MeshRejectedError where there is nothing to write.
        """
        ...

    def parameters(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...
