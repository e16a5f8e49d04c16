"""The embedded teacher behind the Denoiser contract: toybox, trained by this project."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import FlowSchedule
from core.teachers.errors import TeacherWeightsError, UnknownSubjectError
from core.teachers.lora import LoraDenoiser, LoraPlaces, adapt
from core.teachers.toybox_network import (
    IMAGE_SIZE,
    MAX_TOKENS,
    ToyboxNetwork,
    channels_last,
    load_network,
)

__all__ = ["PromptReading", "ToyboxTeacher", "fast_dtype", "weights_sha256"]

_WEIGHT_FILES = (
    "transformer/diffusion_pytorch_model.safetensors",
    "refiner/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "vocabulary.json",
)

MAX_WORDS = MAX_TOKENS - 2
"""The beginning and the end of a prompt are tokens too."""

_LIMIT = f"the embedded teacher reads the first {MAX_WORDS} of the words and commas that it knows"


@dataclass(frozen=True, kw_only=True)
class PromptReading:
    """How the teacher reads a prompt.

    Attributes:
        subjects: The kinds of things it found, in order.
        unknown: Each unknown word with the nearest known ones.
        unread: The known words beyond the number that it reads, in order.
    """

    subjects: tuple[str, ...]
    unknown: tuple[tuple[str, tuple[str, ...]], ...]
    unread: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """One line that names the words without effect, None where there are none."""
        found = []
        if self.unknown:
            words = ", ".join(
                f"{word!r}" + (f" (nearest: {', '.join(near)})" if near else "")
                for word, near in self.unknown
            )
            found.append(f"the embedded teacher has never seen {words} and will ignore it")
        if self.unread:
            found.append(f"{_LIMIT} and ignores all from {self.unread[0]!r} on")
        return "; ".join(found) or None


def weights_sha256(folder: Path) -> str:
    """One SHA-256 over the files that determine what the teacher predicts.

    Raises TeacherWeightsError where one is missing.
    """
    digest = hashlib.sha256()
    for name in _WEIGHT_FILES:
        path = folder / name
        try:
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise TeacherWeightsError(
                f"the teacher's file {name} cannot be read in {folder} ({error.strerror}): "
                "install the package again, or give the folder of a complete teacher"
            ) from error
    return digest.hexdigest()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class ToyboxTeacher:
    """Frozen x0-prediction from text and camera at 64x64 pixels, on the flow path.

    The camera of a `Conditioning` is [B, 2], azimuth and elevation in degrees; None, or NaN in a
    row, drops it. Without `takes_camera` it is always dropped: such a teacher was trained without
    one and knows a view by the prompt's words.
    """

    image_size = IMAGE_SIZE
    nan_is_no_camera = True
    """Whether a row of NaN among the cameras drops that row's, as None drops all."""
    lora_places = LoraPlaces(
        network="network",
        attention=r"transformer\..*\.attn\.to_[qkv]",
        # It is told the camera in its own way.
        time_embedding=None,
    )

    def __init__(
        self,
        network: ToyboxNetwork,
        tokenizer,
        vocabulary: dict,
        sha256: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self.schedule = FlowSchedule()
        self.weights_sha256 = sha256
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.takes_camera = bool(vocabulary.get("takes_camera", True))
        if not self.takes_camera:
            place = "transformer.time_text_embed"
            self.lora_places = replace(self.lora_places, time_embedding=place)
        self._subjects = {
            synonym.lower(): kind
            for kind, synonyms in vocabulary["kinds"].items()
            for synonym in synonyms
        }
        self.network = network.eval().requires_grad_(False).to(self.device)
        # Module.to, not the model's own: that one warns about casts it was not asked to check.
        nn.Module.to(self.network.transformer, self.dtype)
        nn.Module.to(self.network.refiner, self.dtype)
        channels_last(self.network)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ToyboxTeacher:
        """Read a teacher's folder; never looks at the network, never unpickles.

        Raises TeacherWeightsError for a missing, incomplete or damaged folder.
        """
        sha256 = weights_sha256(folder)
        network, tokenizer = load_network(folder)
        path = folder / "vocabulary.json"
        try:
            vocabulary = json.loads(path.read_text(encoding="utf-8"))
            if not {"kinds", "colors"} <= vocabulary.keys():
                raise ValueError("kinds or colors are missing")
        except (OSError, ValueError, AttributeError) as error:
            raise TeacherWeightsError(
                f"the teacher's {path.name} in {folder} is damaged ({error}): "
                "install the package again"
            ) from error
        for name, parameter in network.named_parameters():
            if not parameter.isfinite().all():
                part, _, rest = name.partition(".")
                raise TeacherWeightsError(
                    f"the teacher's {part} in {folder} holds numbers that are not finite "
                    f"({rest}): install the package again"
                )
        return cls(network, tokenizer, vocabulary, sha256, device=device, dtype=dtype)

    @property
    def module(self) -> nn.Module:
        """The frozen parameters, for a proof that they stay as they are."""
        return self.network

    @property
    def subjects(self) -> tuple[str, ...]:
        """The kinds of things that the teacher can draw."""
        return tuple(self.vocabulary["kinds"])

    @property
    def colors(self) -> tuple[str, ...]:
        return tuple(self.vocabulary["colors"])

    def read_prompt(self, prompt: str) -> PromptReading:
        """Which words are known, and which subjects are named by those that are read."""
        known = set(self.tokenizer.get_vocab())
        words = [w.lower() for w in re.findall(r"[^\W_]+|,", prompt)]
        unknown = [
            (word, tuple(difflib.get_close_matches(word, known, 3, 0.6)))
            for word in dict.fromkeys(words)
            if word not in known and word != ","
        ]
        # As `encode` reads them: unknown words are left out and take no place.
        places = [i for i, word in enumerate(words) if word in known][MAX_WORDS:]
        unread = tuple(words[i] for i in places)
        words = [word for word in words[: places[0] if places else None] if word != ","]
        text = f" {' '.join(words)} "
        found = [(text.find(f" {s} "), kind) for s, kind in self._subjects.items()]
        order = sorted((at, kind) for at, kind in found if at >= 0)
        subjects = tuple(dict.fromkeys(kind for _, kind in order))
        return PromptReading(subjects=subjects, unknown=tuple(unknown), unread=unread)

    def check_prompt(self, prompt: str) -> PromptReading:
        """`read_prompt`, or UnknownSubjectError where the prompt names nothing it can draw."""
        reading = self.read_prompt(prompt)
        if reading.subjects:
            return reading
        words = [word for word, _ in reading.unknown] or re.findall(r"[^\W_]+", prompt.lower())
        near: list[str] = []
        for word in words:
            near += difflib.get_close_matches(word, self._subjects, 3, 0.4)
        nearest = list(dict.fromkeys(self._subjects[s] for s in near))[:5]
        hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
        hint += f"{_LIMIT}; " if reading.unread else ""
        raise UnknownSubjectError(
            f"the embedded teacher can draw nothing in {prompt[:60]!r}; {hint}"
            f"it knows {', '.join(self.subjects)}"
        )

    @torch.no_grad()
    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        """Text features of prompts, with those of the negative prompt for guidance.

        Words that the teacher has never seen are left out (`read_prompt` names them).

        Returns:
            Conditioning of B = len(prompts) samples without a camera.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        tokens = self.tokenizer(
            [self._known_words(text) for text in (*prompts, negative_prompt)],
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).input_ids.to(self.device)
        text = self.network.encode_tokens(tokens)
        negative = text[-1:].expand(len(prompts), -1, -1)
        return Conditioning(text=text[:-1], uncond=Conditioning(text=negative))

    def _known_words(self, text: str) -> str:
        known = self.tokenizer.get_vocab()
        return " ".join(w for w in re.findall(r"[^\W_]+|,", text) if w.lower() in known)

    def adapt(self, rank: int, generator: torch.Generator) -> LoraDenoiser:
        """A twin that learns, with the weights of this one; see `core.teachers.lora`."""
        return adapt(self, self.lora_places, rank=rank, generator=generator)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 3, 64, 64], t [B]; without a conditioning, for the empty prompt.

        Differentiable in x_t.
        """
        if cond is None or cond.text is None:
            empty = self.encode("").expand(len(x_t))
            cond = empty if cond is None else empty.with_camera(cond.camera)
        assert cond.text is not None
        cond = cond.expand(len(x_t))
        text = cond.text
        assert text is not None
        camera = cond.camera if self.takes_camera else None
        if camera is None:
            camera = torch.full((len(x_t), 2), torch.nan, device=x_t.device)
        x0 = self.network(x_t, t.to(x_t.dtype), text, camera)
        return Prediction.from_x0(x0, x_t, t, self.schedule)
