"""A folder of weights in the diffusers format, looked at without loading any of it.

`model_index.json` names the pipeline's class and each component's; every model lies in a folder of
its component's name, as one safetensors file or several with an index. Only safetensors counts as
weights: a pickle (`.bin`, `.ckpt`, `.pt`) can run any code when it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.teachers.errors import TeacherWeightsError
from core.teachers.file_hashes import file_sha256

__all__ = ["Component", "TeacherFolder", "read_folder", "refuse_single_file"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_NOT_READ = {
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "watermarker",
    "image_processor",
}
"""Components of pipelines that no teacher needs."""
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_VARIANTS = (None, "fp16", "bf16")
"""The precisions in which weights are published, the one taken first ahead."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component: its class, the variant of its weights, its files, and what is wrong."""

    name: str
    class_name: str
    variant: str | None
    files: tuple[Path, ...]
    problems: tuple[str, ...]

    @property
    def is_model(self) -> bool:
        return any(path.suffix == ".safetensors" for path in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files if path.suffix == ".safetensors")

    @property
    def parameters(self) -> int:
        """How many numbers its whole files hold, by their headers."""
        shapes = [
            entry["shape"]
            for path in self.files
            if path.suffix == ".safetensors" and not _damage(path)
            for name, entry in _header(path).items()
            if name != "__metadata__"
        ]
        return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """A folder's model_index.json and the components that a teacher reads."""

    path: Path
    class_name: str
    index: dict[str, object]
    components: tuple[Component, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(problem for part in self.components for problem in part.problems)

    @property
    def weight_bytes(self) -> int:
        return sum(component.weight_bytes for component in self.components)

    def has(self, name: str) -> bool:
        return any(component.name == name for component in self.components)

    def component(self, name: str, class_name: str | None = None) -> Component:
        """The component of that name; TeacherWeightsError where it is none or of another class."""
        for component in self.components:
            if component.name == name:
                if class_name not in (None, component.class_name):
                    raise TeacherWeightsError(
                        f"the {name} in {self.path} is a {component.class_name} and not a "
                        f"{class_name}, by its model_index.json: give the folder of another teacher"
                    )
                return component
        raise TeacherWeightsError(
            f"the teacher in {self.path} is a {self.class_name} by its model_index.json and has no "
            f"{name}: give the folder of a complete teacher"
        )

    def require_complete(self) -> None:
        """Raise TeacherWeightsError that names what is missing and what to do."""
        if self.problems:
            more = len(self.problems) - 1
            raise TeacherWeightsError(
                f"the teacher in {self.path} cannot be used: {self.problems[0]}"
                + (f" (and {more} more: sds3d doctor --teacher lists them)" if more else "")
            )

    def sha256(self) -> str:
        """One SHA-256 over every file that a teacher reads, weights and configurations."""
        digest = hashlib.sha256()
        for component in self.components:
            for path in component.files:
                digest.update(f"{component.name}/{path.name}\0".encode())
                digest.update(file_sha256(path))
        return digest.hexdigest()


def refuse_single_file(path: Path) -> None:
    """Raise TeacherWeightsError, with the command that converts it, where `path` is a file."""
    if path.is_file():
        out = str(path.with_suffix(""))
        raise TeacherWeightsError(
            f"{path} is a checkpoint in one file, not a folder in the diffusers format; convert it "
            f'once: python -c "from diffusers import StableDiffusionPipeline as P; '
            f'P.from_single_file({str(path)!r}).save_pretrained({out!r})" '
            "(StableDiffusionXLPipeline for XL; MVDream's .pt: python -m "
            f"core.teachers.convert_mvdream {shlex.quote(str(path))} {shlex.quote(out)})"
        )


def read_folder(path: Path) -> TeacherFolder:
    """Look at a folder; what is missing is in `problems`.

    Raises TeacherWeightsError where it has no readable model_index.json.
    """
    refuse_single_file(path)
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        class_name = index["_class_name"]
        entries = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TeacherWeightsError(
            f"{path} has no readable model_index.json ({type(error).__name__}): give a folder in "
            "the diffusers format"
        ) from error
    components = tuple(
        _look_at(path / name, str(entry[0]), str(entry[1]))
        for name, entry in sorted(entries.items())
        if name not in _NOT_READ
    )
    return TeacherFolder(path=path, class_name=class_name, index=index, components=components)


def _look_at(folder: Path, library: str, class_name: str) -> Component:
    variant = None
    if "Tokenizer" in class_name:
        files, problems = _tokenizer_files(folder)
    elif "Scheduler" in class_name:
        files, problems = _present(folder, "scheduler_config.json")
    else:
        files, problems = _present(folder, "config.json")
        variant, weights, missing = _weights(folder, _STEMS.get(library, _STEMS["diffusers"]))
        files, problems = files + weights, problems + missing
    return Component(
        name=folder.name,
        class_name=class_name,
        variant=variant,
        files=tuple(files),
        problems=tuple(problems),
    )


def _present(folder: Path, *names: str) -> tuple[list[Path], list[str]]:
    found = [folder / name for name in names if (folder / name).is_file()]
    missing = [name for name in names if not (folder / name).is_file()]
    return found, [f"{folder.name}/{name} is missing: {_AGAIN}" for name in missing]


_AGAIN = "download or copy the folder again"


def _tokenizer_files(folder: Path) -> tuple[list[Path], list[str]]:
    settings, problems = _present(folder, "tokenizer_config.json")
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",)):
        found, missing = _present(folder, *names)
        if not missing:
            if names == ("spiece.model",) and importlib.util.find_spec("sentencepiece") is None:
                problems.append(
                    f"{folder.name} comes as spiece.model alone, which needs one more package: "
                    "pip install sentencepiece"
                )
            return settings + found, problems
    return settings, [*problems, f"{folder.name}/tokenizer.json is missing: {_AGAIN}"]


def _weights(folder: Path, stem: str) -> tuple[str | None, list[Path], list[str]]:
    """Variant, files and problems of a model's weights."""
    for variant in _VARIANTS:
        infix = f".{variant}" if variant else ""
        single = folder / f"{stem}{infix}.safetensors"
        sharded = folder / f"{stem}.safetensors.index{infix}.json"
        if single.is_file():
            return variant, [single], _damage(single)
        if sharded.is_file():
            try:
                document = json.loads(sharded.read_text(encoding="utf-8"))
                names = sorted(set(document["weight_map"].values()))
                if not names or any(Path(name).name != name for name in names):
                    raise ValueError("a shard lies beside its index")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return variant, [sharded], [f"{folder.name}/{sharded.name} is damaged: {_AGAIN}"]
            shards, problems = _present(folder, *names)
            problems += [problem for shard in shards for problem in _damage(shard)]
            return variant, [sharded, *shards], problems
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
    if pickles:
        convert = f"python -m core.teachers.convert_pickles {shlex.quote(str(folder.parent))}"
        text = f"{folder.name}/{pickles[0]} is a pickle, which is never read"
        return None, [], [f"{text}; convert it once: {convert}"]
    return None, [], [f"{folder.name}/{stem}.safetensors is missing: {_AGAIN}"]


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; ValueError or OSError where there is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError("the header is cut off")
        return json.loads(file.read(length))


def _damage(path: Path) -> list[str]:
    """Whether a safetensors file has the length that its header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        entries = [entry for name, entry in _header(path).items() if name != "__metadata__"]
        whole = start + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return [f"{path.parent.name}/{path.name} is damaged: {_AGAIN}"]
    if whole != size:
        text = f"has {size} of {whole} bytes"
        return [f"{path.parent.name}/{path.name} {text}: {_AGAIN}"]
    return []
