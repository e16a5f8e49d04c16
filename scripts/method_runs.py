"""What scripts share that run the methods of score distillation one after another."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.teachers.pretrained import PretrainedTeacher
from core.teachers.toybox import ToyboxTeacher
from sds3d.config import DeviceName, GenerateConfig
from sds3d.config_json import folder_name
from sds3d.device import resolve_device
from sds3d.generate import Parts, standard_parts
from sds3d.optimize_config import MethodName
from sds3d.teachers import load_teacher

RECIPES: dict[MethodName, dict[str, Any]] = {
    "ism": {"ode_steps": 4},
    "sdi": {"guidance_scale": 2.0},
    "hifa": {"ode_steps": 4},
    "reconstruction": {"guidance_rescale": 0.5},
    "vsd": {"lora_learning_rate": 3e-3},
}
"""Options beside the defaults: fewer steps of the ODE where four do; for SDI, whose four do not, a
guidance at which its inversion is by the unconditional teacher; and a rate at which the twin learns
within a few hundred steps."""


class Passes:
    """Counts the samples that a network is asked about, and those of every copy of it."""

    samples = 0

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.samples += len(inputs[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Passes:
        return self


def counted_parts(
    teacher: str, device: DeviceName
) -> tuple[Parts, ToyboxTeacher | PretrainedTeacher, Passes]:
    """The parts of `generate` with the teacher loaded once, it, and a count of its passes.

    Raises the errors of `sds3d.errors`.
    """
    parts = standard_parts(teacher)
    loaded = load_teacher(teacher, resolve_device(device))
    loaded.module.register_forward_pre_hook(counter := Passes())
    return dataclasses.replace(parts, load_teacher=lambda *_: loaded), loaded, counter


def is_finished(given: GenerateConfig, weights_sha256: str) -> bool:
    """Whether the run is there with its result."""
    given = dataclasses.replace(given, device=resolve_device(given.device))
    return (given.out / folder_name(given, weights_sha256) / "result.json").is_file()


def write_part(page: Path, mark: str, text: str) -> None:
    """Put `text` between the page's comments "mark" and "/mark".

    Raises ValueError where the page does not have the two, and leaves it as it is.
    """
    before = page.read_text(encoding="utf-8")
    pattern = f"<!-- {mark} -->.*?<!-- /{mark} -->"
    part = f"<!-- {mark} -->\n{text}\n<!-- /{mark} -->"
    after, count = re.subn(pattern, lambda _: part, before, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has {count} parts between <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(after, encoding="utf-8")
