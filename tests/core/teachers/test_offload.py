"""What is idle is elsewhere: text encoders and the denoiser take turns on the device."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, PreTrainedModel, T5EncoderModel

from core.teachers import pretrained
from core.teachers.flux import FluxTeacher
from core.teachers.stable_diffusion import StableDiffusionTeacher
from core.teachers.teacher import TeacherOptions
from sds3d import doctor_teachers
from sds3d.user_config import config_path

DEVICE = torch.device("cpu", 0)
"""The same memory as "cpu", and another name: what is moved to which is seen without a GPU."""
PROMPTS = ["a red mushroom", "a car"]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What leaves the device and what comes to it, and which encoder is asked, in their order."""
    seen: list[str] = []
    move, ask = nn.Module.to, PreTrainedModel.__call__

    @contextlib.contextmanager
    def set_aside(teacher: object) -> Iterator[None]:
        assert isinstance(teacher, FluxTeacher)
        seen.append("denoiser off")
        yield
        seen.append("denoiser on")

    def to(self: nn.Module, *args: Any, **how: Any) -> nn.Module:
        if isinstance(self, PreTrainedModel) and args:
            seen.append(f"{type(self).__name__} {'on' if args[0] == DEVICE else 'off'}")
        return move(self, *args, **how)

    def call(self: PreTrainedModel, *args: Any, **how: Any) -> Any:
        if isinstance(self, CLIPTextModel | T5EncoderModel):
            seen.append(f"{type(self).__name__} asked")
        return ask(self, *args, **how)

    monkeypatch.setattr(pretrained, "set_aside", set_aside)
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(PreTrainedModel, "__call__", call, raising=False)
    return seen


def test_text_encoders_and_the_denoiser_take_turns_on_the_device(
    tiny_folder: Callable[[str], Path], moves: list[str]
) -> None:
    found = {}
    for visit in (True, False):
        options = TeacherOptions(image_size=16, offload_text_encoders=visit)
        teacher = FluxTeacher.load(tiny_folder("flux-dev"), device=DEVICE, options=options)
        moves.clear()
        found[visit] = teacher.encode(PROMPTS, "blurry")
        if not visit:
            assert not [step for step in moves if step.endswith(" off")]
            assert sum(step.endswith(" asked") for step in moves) == 4
            continue
        assert (moves[0], moves[-1]) == ("denoiser off", "denoiser on")
        assert sum("denoiser" in step for step in moves) == 2
        here: set[str] = set()
        asked = 0
        for step in moves[1:-1]:
            name, what = step.split()
            if what == "asked":
                asked += 1
                assert here == {name}
            elif what == "on":
                here.add(name)
            else:
                here.discard(name)
        assert asked == 4  # prompts and the negative one, by both
        assert not here
    for name in ("text", "pooled_text"):
        assert torch.equal(getattr(found[True], name), getattr(found[False], name))


def test_what_is_let_go_is_gone_at_once(tiny_folder: Callable[[str], Path]) -> None:
    teacher = FluxTeacher.load(tiny_folder("flux-dev"), options=TeacherOptions(image_size=16))
    cond = teacher.encode(PROMPTS)
    encoders = [weakref.ref(encoder) for encoder in teacher._text_encoders.values()]
    assert len(encoders) == 2
    assert all(encoder() is not None for encoder in encoders)
    teacher.free_text_encoders()
    assert all(encoder() is None for encoder in encoders)
    assert cond.text is not None
    assert cond.text.isfinite().all()


def test_the_doctor_counts_the_text_encoders_or_the_rest_where_they_take_turns(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(doctor_teachers, "in_gib", lambda size: f"<{size}>")
    folder = tiny_folder("sd-eps")
    whole = StableDiffusionTeacher.load(folder)
    whole.encode("a mug")
    encoder = sum(p.nbytes for p in whole._text_encoders["text_encoder"].parameters())
    config_path().parent.mkdir(parents=True)

    def figures(settings: str) -> list[int]:
        config_path().write_text(settings)
        (text,) = [
            finding.text
            for finding in doctor_teachers.teacher_findings(str(folder))
            if finding.name == "teacher memory"
        ]
        return [int(part.split(">")[0]) for part in text.split("<")[1:]]

    together, after, least = figures("")
    assert together == after + encoder
    assert least == max(after, encoder)
    assert figures("[teacher]\noffload_text_encoders = true\n") == [least, after]
