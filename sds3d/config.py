"""Every option of a run, once: the command line, the batch and the app all read these classes.

The classes are frozen and keyword-only, check themselves when made and have no side effects.
Importing this module does not import torch.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from .errors import PromptError
from .optimize_config import OptimizeConfig
from .require import require, require_number

MAX_PROMPT_CHARACTERS = 1000

PresetName = Literal[
    "fast",
    "balanced",
    "quality",
    "dreamfusion",
    "sjc",
    "magic3d",
    "prolificdreamer",
    "luciddreamer",
    "sdi",
    "csd",
    "mvdream",
    "latent-nerf",
]
TeacherName = str
"""The name of a teacher, of this program or the user's file, a hub's id, or the folder of one."""

DeviceName = Literal["auto", "cpu", "cuda"]
Format = Literal["glb", "obj"]


def clean_prompt(text: str, name: str = "prompt") -> str:
    """The prompt in Unicode NFC with runs of white space made one blank.

    Raises PromptError for more than `MAX_PROMPT_CHARACTERS` and for control characters or bytes
    that are no text.
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(
            f"the {name} has {len(text)} characters: shorten it to at most {MAX_PROMPT_CHARACTERS}"
        )
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise PromptError(
                f"the {name} holds the control character U+{ord(character):04X}: remove it"
            )
    return text


def required_prompt(text: str) -> str:
    """`clean_prompt` of a prompt that must not be empty."""
    prompt = clean_prompt(text)
    if not prompt:
        raise PromptError('the prompt is empty: say what to make, e.g. "a red mushroom"')
    return prompt


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The mesh and its files."""

    formats: tuple[Format, ...] = ("glb", "obj")
    """Mesh files to write."""
    max_faces: int = 40_000
    """Most triangles of the mesh."""
    texture_size: int = 1024
    """Side of the baked texture in pixels; 0 stores one colour per vertex instead."""
    mesh_resolution: int = 128
    """Cells along an axis of the grid on which the surface is found."""

    def __post_init__(self) -> None:
        require(
            len(self.formats) > 0 and len(set(self.formats)) == len(self.formats),
            "--formats",
            self.formats,
            "give glb, obj or both, each once",
        )
        for name in self.formats:
            require(name in get_args(Format), "--formats", name, "give glb, obj or both")
        require_number("--max-faces", self.max_faces, 100, 10_000_000)
        require(
            self.texture_size == 0 or 64 <= self.texture_size <= 8192,
            "--texture-size",
            self.texture_size,
            "give 64 to 8192 pixels, or 0 for vertex colours",
        )
        require_number("--mesh-resolution", self.mesh_resolution, 16, 1024)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """One prompt's way to a mesh."""

    prompt: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress]
    negative_prompt: str = ""
    """What the object should not be."""
    seed: int = 0
    """Seed of all randomness."""
    preset: PresetName = "balanced"
    """Named set of options; options given beside it win."""
    teacher: TeacherName = "toybox"
    """The diffusion model that judges the renders: toybox, toybox-guided, toybox-words, another
    name (sd21 or one of your own), a hub's id, or a folder in the diffusers format."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    out: Path = Path("outputs")
    """Folder in which the run's own folder is made."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""
    optimize: OptimizeConfig = field(default_factory=OptimizeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", required_prompt(self.prompt))
        negative = clean_prompt(self.negative_prompt, "negative prompt")
        object.__setattr__(self, "negative_prompt", negative)
        require_number("--seed", self.seed, 0, 2**63 - 1)
        for name, allowed in (("preset", PresetName), ("device", DeviceName)):
            choices = get_args(allowed)
            require(
                getattr(self, name) in choices,
                f"--{name}",
                getattr(self, name),
                f"give one of {', '.join(choices)}",
            )
        require(bool(self.teacher), "--teacher", self.teacher, "give toybox or a teacher's folder")
        require_number("--checkpoint-seconds", self.checkpoint_seconds, 0, open_low=True)
