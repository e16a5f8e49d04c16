"""What a teacher wants of the other options, by its folder alone: for a form, which loads none.

A run asks the teacher itself (`sds3d.embedded_guidance`, `core.teachers.teacher`) and refuses what
does not go together. Importing this module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.teachers.folder import TeacherFolder

from .config import TeacherName
from .errors import TeacherError
from .optimize_config import OptimizeConfig
from .presets import with_teacher
from .teachers import JOINED_VIEWS, look_at


@dataclass(frozen=True, kw_only=True)
class TeacherNeeds:
    """What is known of a teacher before it is loaded.

    Attributes:
        views_per_object: How many views of an object it judges together.
        embedded_scales: The least and the largest scale where guidance is in its weights.
        takes_guidance: Whether it takes a scale as an input and leaves room for guidance around it.
    """

    views_per_object: int = 1
    embedded_scales: tuple[float, float] | None = None
    takes_guidance: bool = False

    @property
    def text(self) -> str:
        """For whoever chose it; empty where it wants nothing of its own."""
        said = []
        if self.views_per_object > 1:
            said.append(
                f"It judges {self.views_per_object} views of an object together: views per step "
                "are a multiple of that."
            )
        if self.embedded_scales is not None:
            low, high = self.embedded_scales
            said.append(
                f"Guidance is in its weights, at scales from {low:g} to {high:g}: it takes no "
                "negative prompt, and only methods that ask for the guided answer alone."
            )
        if self.takes_guidance:
            said.append(
                "It takes a guidance scale as an input, the embedded guidance below, of which 0 is "
                "its published one."
            )
        return " ".join(said)

    def fit(self, options: OptimizeConfig) -> OptimizeConfig:
        """`options` with what such a teacher could only refuse exchanged for what it takes."""
        if self.embedded_scales is None:
            return options
        low, high = self.embedded_scales
        return replace(
            options,
            guidance_scale=min(max(options.guidance_scale, low), high),
            guidance_rescale=0.0,
            camera_conditioning=True,
            camera_guidance=True,
            perp_neg=False,
        )


def needs_of(name: TeacherName) -> TeacherNeeds:
    """What the teacher of that name wants; nothing where none such is on this machine."""
    try:
        folder = look_at(name, fetch=False)
    except TeacherError:
        return TeacherNeeds()
    read = _READ.get(folder.class_name)
    known = {} if read is None else read(folder)
    return TeacherNeeds(views_per_object=JOINED_VIEWS.get(folder.class_name, 1), **known)


def fitted(options: OptimizeConfig, teacher: TeacherName, needs: TeacherNeeds) -> OptimizeConfig:
    """`options` with everything that the teacher wants of them."""
    return with_teacher(needs.fit(options), teacher)


def _of_guided(folder: TeacherFolder) -> dict[str, Any]:
    config = _json(folder.path / "delta" / "config.json")
    scales = config.get("min_guidance_scale"), config.get("max_guidance_scale")
    low, high = (value if isinstance(value, (int, float)) else None for value in scales)
    return {} if low is None or high is None else {"embedded_scales": (float(low), float(high))}


def _of_flux(folder: TeacherFolder) -> dict[str, Any]:
    config = _json(folder.path / "transformer" / "config.json")
    return {"takes_guidance": config.get("guidance_embeds") is True}


_READ: Mapping[str, Callable[[TeacherFolder], dict[str, Any]]] = {
    "GuidedToyboxTeacher": _of_guided,
    "FluxPipeline": _of_flux,
}
"""By the class in a folder's model_index.json, as in `sds3d.teachers.family`."""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
