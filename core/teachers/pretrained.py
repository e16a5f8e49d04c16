"""What the teachers that are read from a diffusers folder share: text, options, freezing."""

# diffusers decorates its methods with types that hide their own, and its annotations are narrower
# than what it takes; transformers makes some names at run time.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import NoiseSchedule
from core.teachers.autoencoder import Autoencoder
from core.teachers.errors import TeacherOptionError
from core.teachers.folder import TeacherFolder, read_folder
from core.teachers.loading import choose_dtype, load_model, load_tokenizer
from core.teachers.lora import LoraDenoiser, LoraPlaces, adapt
from core.teachers.teacher import DTYPES, DTypeName, PromptNote, TeacherOptions, set_aside

__all__ = ["LatentPretrainedTeacher", "PretrainedTeacher", "TextFeatures", "TextReader"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def _shape_of(tensor: Tensor) -> partial[Tensor]:
    """What makes a tensor of the same shape, dtype and device."""
    return partial(torch.empty, tensor.shape, dtype=tensor.dtype, device=tensor.device)


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """A text encoder of a family: its component and its tokenizer's, their classes.

    `max_tokens` None is the tokenizer's own limit.
    """

    encoder: str
    tokenizer: str
    encoder_class: type[PreTrainedModel]
    tokenizer_class: type[PreTrainedTokenizerBase]
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFeatures:
    """Of N texts: tokens [N, L, D], and the whole [N, P] for networks that take it."""

    tokens: Tensor
    pooled: Tensor | None = None


class PretrainedTeacher(ABC):
    """A frozen denoiser from a folder in the diffusers format.

    It ignores the camera of a Conditioning unless `takes_camera`: most such networks know views by
    their prompts alone.

    Text encoders are read at the first `encode` and can be let go after it; a later `encode` reads
    them again. On torch's meta device it is an outline: the shapes of its configs without a weight,
    by which it can be seen what a step would take.
    """

    published_dtype: ClassVar[torch.dtype]
    """Half precision in which the family runs well."""

    lora_places: ClassVar[LoraPlaces]
    """Where a learning twin of the family takes its adapters."""

    takes_camera: ClassVar[bool] = False
    """Whether the network is told the camera."""

    image_size: int
    schedule: NoiseSchedule

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        folder.require_complete()
        self.folder = folder
        self.options = options
        self.device = torch.device(device)
        self.dtype = choose_dtype(options.dtype, self.device, self.published_dtype)
        self._text_encoders: dict[str, PreTrainedModel] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._outlined_text: dict[tuple[str, int, bool, bool], Any] = {}
        self._empty: Conditioning | None = None
        self._weights_sha256: str | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        options: TeacherOptions | None = None,
    ) -> Self:
        """Read a folder; never looks at the network, never unpickles.

        Raises TeacherWeightsError for a missing, incomplete or damaged folder, and
        TeacherOptionError for options that this family does not have.
        """
        found = read_folder(folder)
        teacher = cls(found, device=device, options=options or TeacherOptions())
        for reader in teacher.text_readers:
            found.component(reader.encoder, reader.encoder_class.__name__)
            found.component(reader.tokenizer)
        return teacher

    @classmethod
    def dtype_on(cls, device: torch.device | str, options: TeacherOptions) -> DTypeName:
        """The dtype that the weights would have on `device`."""
        dtype = choose_dtype(options.dtype, torch.device(device), cls.published_dtype)
        return next(name for name, known in DTYPES.items() if known is dtype)

    @property
    def weights_sha256(self) -> str:
        """One SHA-256 over all files that it is read from."""
        if self._weights_sha256 is None:
            self._weights_sha256 = self.folder.sha256()
        return self._weights_sha256

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The frozen parameters, for a proof that they stay as they are (text encoders aside)."""

    @property
    @abstractmethod
    def text_readers(self) -> Sequence[TextReader]:
        """The text encoders that this folder has."""

    @abstractmethod
    def text_features(self, texts: list[str]) -> TextFeatures:
        """Features of N texts, by `encode_text`."""

    def negative_features(self, text: str) -> TextFeatures:
        """Features of the one text that guidance contrasts with."""
        return self.text_features([text])

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, C, h, w], t [B]; without a conditioning, for the empty prompt.

        Differentiable in x_t.
        """

    @torch.no_grad()
    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        """Text features of B = len(prompts) prompts, with those of the negative prompt."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        with set_aside(self) if self._text_encoders_visit else contextlib.nullcontext():
            features = self.text_features(prompts)
            negative = self.negative_features(negative_prompt)
        pooled, n = negative.pooled, len(prompts)
        uncond = Conditioning(
            text=negative.tokens.expand(n, -1, -1),
            pooled_text=None if pooled is None else pooled.expand(n, -1),
            guidance_scale=self.embedded_guidance(n),
        )
        return Conditioning(
            text=features.tokens,
            pooled_text=features.pooled,
            guidance_scale=self.embedded_guidance(n),
            uncond=uncond,
        )

    def embedded_guidance(self, n: int) -> Tensor | None:
        """The guidance scale [n] that networks with such an input are given, None for others."""
        return None

    def free_text_encoders(self) -> None:
        """Let go of the text encoders' memory; what is encoded stays valid."""
        self._text_encoders.clear()

    def adapt(self, rank: int, generator: torch.Generator) -> LoraDenoiser:
        """A twin that learns, with the weights of this one; see `core.teachers.lora`."""
        return adapt(self, self.lora_places, rank=rank, generator=generator)

    def check_prompt(self, prompt: str) -> PromptNote:
        """Whether the prompt is longer than what is read of it."""
        counts = []
        for reader in self.text_readers:
            tokenizer, limit = self._tokenizer(reader)
            # Quietly: transformers would warn on its own, of errors that truncation prevents.
            counts.append((limit, len(tokenizer(prompt, verbose=False).input_ids)))
        limit, count = max(counts)
        if count <= limit:
            return PromptNote(warning=None)
        return PromptNote(
            warning=f"the prompt has {count} tokens, and the teacher reads the first {limit}"
        )

    def token_ids(self, reader: TextReader, texts: list[str]) -> dict[str, Tensor]:
        """Padded token ids [N, L] and their mask, on the CPU."""
        tokenizer, limit = self._tokenizer(reader)
        found = tokenizer(
            texts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        return {"input_ids": found.input_ids, "attention_mask": found.attention_mask}

    def encode_text(
        self,
        reader: TextReader,
        texts: list[str],
        *,
        masked: bool = False,
        hidden_states: bool = False,
    ) -> dict[str, Tensor]:
        """What the encoder says of N texts by name, on the teacher's device.

        With `masked` it does not look at the padding.
        """
        if self.device.type != "meta":
            return self._ask(reader, texts, masked, hidden_states)
        # An outline's texts have no words: as many of them have the shapes that others had. What
        # is kept of those makes them anew and holds nothing.
        question = (reader.encoder, len(texts), masked, hidden_states)
        if question not in self._outlined_text:
            found = dict(self._ask(reader, texts, masked, hidden_states))
            self._outlined_text[question] = tree_map_only(Tensor, _shape_of, found)
        return tree_map_only(partial, lambda make: make(), self._outlined_text[question])

    def _ask(
        self, reader: TextReader, texts: list[str], masked: bool, hidden_states: bool
    ) -> dict[str, Tensor]:
        visits = self._text_encoders_visit
        if reader.encoder not in self._text_encoders:
            home = torch.device("cpu") if visits else self.device
            self._text_encoders[reader.encoder] = load_model(
                self.folder, reader.encoder, reader.encoder_class, self.dtype, home
            )
        encoder = nn.Module.to(self._text_encoders[reader.encoder], self.device)
        inputs = {
            name: ids.to(self.device)
            for name, ids in self.token_ids(reader, texts).items()
            if masked or name == "input_ids"
        }
        outputs = encoder(**inputs, output_hidden_states=hidden_states)
        if visits:
            nn.Module.to(encoder, "cpu")
        return outputs

    @property
    def _text_encoders_visit(self) -> bool:
        """Whether the device holds the text encoders or the rest, and never both."""
        # An outline cannot leave its device, and takes no room on it.
        return self.options.offload_text_encoders and self.device.type != "meta"

    def _tokenizer(self, reader: TextReader) -> tuple[PreTrainedTokenizerBase, int]:
        if reader.tokenizer not in self._tokenizers:
            self._tokenizers[reader.tokenizer] = load_tokenizer(
                self.folder, reader.tokenizer, reader.tokenizer_class
            )
        tokenizer = self._tokenizers[reader.tokenizer]
        return tokenizer, reader.max_tokens or tokenizer.model_max_length

    def conditioning_of(self, cond: Conditioning | None, n: int) -> tuple[Conditioning, Tensor]:
        """`cond` for n samples, or that of the empty prompt, and its text in the weights' dtype."""
        if cond is None or cond.text is None:
            if self._empty is None:
                self._empty = self.encode("")
            cond = self._empty
        cond = cond.expand(n)
        assert cond.text is not None
        return cond, cond.text.to(self.dtype)

    def load_network(self, name: str, kind: type[NetworkT]) -> NetworkT:
        """The denoising network, with attention slice by slice where the options say so."""
        network = load_model(self.folder, name, kind, self.dtype, self.device)
        if self.options.attention_slicing:
            slicing = getattr(network, "set_attention_slice", None)
            if slicing is None:
                raise TeacherOptionError(
                    "attention_slicing is for UNets, and this teacher is a transformer: leave it "
                    "out, or choose a smaller image_size"
                )
            slicing("auto")
        return network


class LatentPretrainedTeacher(PretrainedTeacher):
    """A `PretrainedTeacher` of latents."""

    latents_to_rgb: ClassVar[tuple[tuple[float, float, float], ...] | None] = None
    """What each channel of the latents adds to R, G and B in [-1, 1], roughly, where one knows."""

    vae_overflows: ClassVar[bool] = False
    """Whether the family's autoencoder overflows in float16, where its folder does not say."""

    autoencoder: Autoencoder
    latent_shape: tuple[int, int, int]

    def __init__(
        self, folder: TeacherFolder, *, device: torch.device | str, options: TeacherOptions
    ) -> None:
        super().__init__(folder, device=device, options=options)
        self.autoencoder = Autoencoder(
            folder,
            device=self.device,
            dtype=self.dtype,
            checkpoint=options.checkpoint_vae,
            overflows=self.vae_overflows,
        )

    def set_image_size(self, latent_side: int, multiple_of: int = 1) -> None:
        """Take the size of the training, or that of the options."""
        autoencoder = self.autoencoder
        chosen = self.options.image_size
        self.image_size = latent_side * autoencoder.factor if chosen is None else chosen
        side = autoencoder.side(self.image_size, multiple_of)
        self.latent_shape = (autoencoder.channels, side, side)

    def encode_image(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] of x [B, 3, H, W] in [-1, 1]; differentiable in x."""
        return self.autoencoder.encode(x)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1], of latents [B, C, h, w]."""
        return self.autoencoder.decode(latents)
