"""The proving ground of real images: scikit-learn's 8x8 handwritten digits, ten classes.

The teacher and the classifier are the project's own (scripts/train_digits_teacher.py) and ship in
assets/digits; the classifier never sees a generated digit, and its features are what the Frechet
distance compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import Batch, Ground
from core.distillation.students import NetworkDenoiser
from core.frozen import freeze
from core.networks import MLP
from core.prediction import Parametrisation
from core.schedule import FlowSchedule

from ..errors import BadInput

SIDE = 8
CLASSES = 10
T_MIN = 0.01


@dataclass(frozen=True, eq=False)
class Digits:
    """Images [N, 64] in [-1, 1] with their classes [N]."""

    images: Tensor
    labels: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n of them, with replacement; a tenth without their label, as guidance needs."""
        index = torch.randint(len(self.images), (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < 0.1
        labels = torch.where(dropped, -1, self.labels[index])
        return Batch(x0=self.images[index], cond=Conditioning(labels=labels))


@cache
def digits() -> tuple[Digits, Digits]:
    """(train, test): a fixed random fifth is for the test (the file's order goes by class)."""
    bunch: Any = load_digits()  # its annotations mix all that it may return
    images = torch.from_numpy(bunch.data).float() / 8.0 - 1.0
    labels = torch.from_numpy(bunch.target).long()
    held = torch.rand(len(images), generator=torch.Generator().manual_seed(0)) < 0.2
    return Digits(images[~held], labels[~held]), Digits(images[held], labels[held])


def make_network(
    *, times: int = 1, reads_guidance_scale: bool = False, in_dimension: int | None = None
) -> nn.Module:
    """An MLP over the 64 pixels that reads the class."""
    return MLP(
        in_dimension or SIDE * SIDE,
        out_dimension=SIDE * SIDE,
        times=times,
        n_labels=CLASSES,
        reads_guidance_scale=reads_guidance_scale,
        width=384,
        depth=4,
    )


class DigitClassifier(nn.Module):
    """Images [B, 64] to class logits [B, 10]; `features` [B, 64] are the last hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            nn.Conv2d(1, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(48 * 16, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def save_module(module: nn.Module, path: Path) -> None:
    """Its weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, path)


def _load(module: nn.Module, path: Path) -> nn.Module:
    if not path.is_file():
        raise BadInput(
            f"{path.name} of the digits ground is not in {path.parent}: install the package "
            "again, or run scripts/train_digits_teacher.py"
        )
    try:
        module.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{path} is damaged, or of another network ({reason}): install the package again, or "
            "run scripts/train_digits_teacher.py"
        ) from error
    freeze(module)
    return module


def digit_classifier(folder: Path) -> DigitClassifier:
    """The frozen classifier in `folder`. Raises BadInput where it is missing."""
    classifier = _load(DigitClassifier(), folder / "classifier.safetensors")
    assert isinstance(classifier, DigitClassifier)
    return classifier


def digits_ground(folder: Path) -> Ground:
    """The ground with the teacher in `folder`. Raises BadInput where it is missing."""
    train, _ = digits()
    network = _load(make_network(), folder / "teacher.safetensors")
    return Ground(
        teacher=NetworkDenoiser(network, FlowSchedule(), Parametrisation.X0),
        shape=(SIDE * SIDE,),
        data=train.draw,
        make_network=make_network,
        data_std=float((train.images - train.images.mean(0)).square().mean().sqrt()),
        t_min=T_MIN,
        # The teacher's own, so that students can begin with its weights.
        parametrisation=Parametrisation.X0,
    )
