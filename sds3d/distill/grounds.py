"""The proving grounds by name: what the command line and the app let one choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor

from core.distillation.field.classifier_features import mixture_classifier
from core.distillation.method import Ground, MethodCard, Needs
from core.distillation.mixture_ground import mixture_ground, ring_mixture, two_mode_mixture
from core.distillation.point_cloud_ground import point_cloud_ground
from core.mixture import GaussianMixture

from ..assets import shipped
from ..errors import BadInput
from .digits import digit_classifier, digits_ground

GroundName = Literal["mixture", "mixture-1d", "digits", "clouds"]


def load_clouds(folder: Path) -> Tensor:
    """[M, N, 3], of unit variance. Raises BadInput where the file is missing."""
    path = folder / "clouds.safetensors"
    if not path.is_file():
        raise BadInput(
            f"{path.name} of the clouds ground is not in {folder}: install the package again, "
            "or run scripts/sample_point_clouds.py"
        )
    return load_file(path)["points"].float()


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedGround:
    """A ground, its name, and what some methods and measures need besides.

    classifier    x [B, ...] to (class logits, features)
    mixture       the exact data where it is a mixture
    """

    name: GroundName
    ground: Ground
    has_labels: bool
    classifier: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    mixture: GaussianMixture | None = None

    def serving(self, card: MethodCard) -> NamedGround:
        """This ground as the method of `card` is tried on it.

        Given its class a mixture's draw is of one mode, and nothing is left to distil: methods that
        need no labels see the mixture without.
        """
        if self.mixture is None or Needs.LABELS in card.needs:
            return self
        return replace(self, ground=mixture_ground(self.mixture), has_labels=False)


def named_ground(name: GroundName, assets: Path | None = None) -> NamedGround:
    """The ground of that name. Raises BadInput where its files are missing.

    mixture      six modes of unequal weight on a circle, each a class; exact teacher
    mixture-1d   two modes on a line; exact teacher and flow
    digits       8x8 handwritten digits in ten classes; the teacher that ships
    clouds       points on the surfaces of the toybox world's things; exact teacher
    """
    if name == "clouds":
        clouds = load_clouds(assets or shipped("clouds"))
        return NamedGround(
            name=name, ground=point_cloud_ground(clouds), has_labels=False, classifier=None
        )
    if name == "mixture-1d":
        mixture = two_mode_mixture()
        return NamedGround(
            name=name,
            ground=mixture_ground(mixture),
            has_labels=False,
            classifier=None,
            mixture=mixture,
        )
    if name == "mixture":
        mixture = ring_mixture()
        return NamedGround(
            name=name,
            ground=mixture_ground(mixture, with_labels=True),
            has_labels=True,
            classifier=mixture_classifier(mixture),
            mixture=mixture,
        )
    folder = assets or shipped("digits")
    classifier = digit_classifier(folder)

    def classify(x: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(x)
        return classifier.head(features), features

    return NamedGround(
        name=name, ground=digits_ground(folder), has_labels=True, classifier=classify
    )
