"""The Denoiser contract: what a teacher, a student, a fake score and a guided teacher share.

A denoiser takes x_t [B, ...], t [B] and a Conditioning of B samples, and returns a Prediction.

Guidance is a denoiser made of another denoiser's differences. For a given x_t, the difference of
two predictions is the same direction in every parametrisation (eps differs by -alpha/sigma times
what x0 differs by), so it is written once, in whichever the denoiser gives, and holds at the
schedule's ends too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample

__all__ = [
    "ClassifierFreeGuidance",
    "Conditioning",
    "Denoiser",
    "Guidance",
    "GuidedPrediction",
    "PerpNegGuidance",
    "can_concatenate",
    "concatenate",
]


class Denoiser(Protocol):
    """x_t [B, ...], t [B] in [0, 1] and what it is conditioned on, to a Prediction."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """What B samples are conditioned on; a field that is None is dropped.

    text       [B, L, D] token embeddings
    text_mask  [B, L] bool, True at real tokens; None means that all are
    pooled_text  [B, P], the prompt as a whole, for networks that take it beside the tokens
    camera     [B, ...] in the form that the teacher documents; opaque here
    labels     [B] long, the class of each sample; -1 is no class
    guidance_scale  [B], for networks that take it as an input (guidance-distilled ones)
    uncond     what guidance contrasts with: the empty or negative prompt, for the same B samples
    """

    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled_text: Tensor | None = None
    camera: Tensor | None = None
    labels: Tensor | None = None
    guidance_scale: Tensor | None = None
    uncond: Conditioning | None = None

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in self._tensors()}
        if self.uncond is not None:
            sizes.add(self.uncond.batch_size)
        if len(sizes) != 1:
            raise ValueError(
                "A Conditioning needs at least one field, and one batch size in all of them "
                f"(uncond included), got the sizes {sorted(sizes)}."
            )
        if self.text_mask is not None and (
            self.text is None or self.text_mask.shape != self.text.shape[:2]
        ):
            raise ValueError("text_mask must come with text and have its first two dimensions.")

    @property
    def batch_size(self) -> int:
        if self.uncond is not None:
            return self.uncond.batch_size
        return len(self._tensors()[0])

    def expand(self, n: int) -> Conditioning:
        """One sample's conditioning for n samples; a batch of n is returned as it is.

        Raises ValueError for any other batch size.
        """
        if self.batch_size == n:
            return self
        if self.batch_size != 1:
            raise ValueError(
                f"Only a conditioning of one sample can be expanded to {n}; this one has "
                f"{self.batch_size}. Use select() to repeat samples."
            )
        return self._map(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def select(self, index: Tensor | slice | Sequence[int]) -> Conditioning:
        """The samples at `index`, as indexing a tensor's first axis does; repeats are allowed."""
        return self._map(lambda tensor: tensor[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """On another device; `dtype` is for the floating-point fields only."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return self._map(move)

    def with_camera(self, camera: Tensor | None, *, drop_in_uncond: bool = False) -> Conditioning:
        """The same with `camera` [B, ...]; a single sample's conditioning is expanded to B.

        `uncond` gets the camera too, so that guidance strengthens the prompt alone; with
        `drop_in_uncond` it has none, and guidance strengthens the view as well.
        """
        cond = self if camera is None else self.expand(len(camera))
        uncond = cond.uncond
        if uncond is not None:
            uncond = uncond.with_camera(None if drop_in_uncond else camera)
        return replace(cond, camera=camera, uncond=uncond)

    def _tensors(self) -> list[Tensor]:
        fields = (*self._maskless_fields(), self.text_mask)
        return [tensor for tensor in fields if tensor is not None]

    def _maskless_fields(self) -> tuple[Tensor | None, ...]:
        return (self.text, self.pooled_text, self.camera, self.labels, self.guidance_scale)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            text=None if self.text is None else function(self.text),
            text_mask=None if self.text_mask is None else function(self.text_mask),
            pooled_text=None if self.pooled_text is None else function(self.pooled_text),
            camera=None if self.camera is None else function(self.camera),
            labels=None if self.labels is None else function(self.labels),
            guidance_scale=None if self.guidance_scale is None else function(self.guidance_scale),
            uncond=None if self.uncond is None else self.uncond._map(function),
        )


def can_concatenate(conds: Sequence[Conditioning]) -> bool:
    """Whether every field is present in all of `conds` or in none (masks aside)."""
    present = {
        tuple(field is None for field in (*cond._maskless_fields(), cond.uncond)) for cond in conds
    }
    if len(present) != 1:
        return False
    unconds = [cond.uncond for cond in conds if cond.uncond is not None]
    return not unconds or can_concatenate(unconds)


def concatenate(conds: Sequence[Conditioning]) -> Conditioning:
    """One batch of all samples of `conds`, in order.

    Texts of different lengths are padded with zeros that the mask excludes. Raises ValueError
    where a field is present in some only: there is no value that means "dropped" for one sample.
    """
    if not conds:
        raise ValueError("concatenate needs at least one conditioning.")
    if not can_concatenate(conds):
        raise ValueError(
            "Conditionings can only be concatenated when the same fields are present in all of "
            "them. Call the denoiser once for each instead."
        )
    text, text_mask = _concatenate_text(conds)
    pooled = [cond.pooled_text for cond in conds if cond.pooled_text is not None]
    cameras = [cond.camera for cond in conds if cond.camera is not None]
    labels = [cond.labels for cond in conds if cond.labels is not None]
    scales = [cond.guidance_scale for cond in conds if cond.guidance_scale is not None]
    unconds = [cond.uncond for cond in conds if cond.uncond is not None]
    return Conditioning(
        text=text,
        text_mask=text_mask,
        pooled_text=torch.cat(pooled) if pooled else None,
        camera=torch.cat(cameras) if cameras else None,
        labels=torch.cat(labels) if labels else None,
        guidance_scale=torch.cat(scales) if scales else None,
        uncond=concatenate(unconds) if unconds else None,
    )


def _concatenate_text(conds: Sequence[Conditioning]) -> tuple[Tensor | None, Tensor | None]:
    texts = [cond.text for cond in conds if cond.text is not None]
    if not texts:
        return None, None
    length = max(text.shape[1] for text in texts)
    all_real = all(cond.text_mask is None for cond in conds)
    if all_real and all(text.shape[1] == length for text in texts):
        return torch.cat(texts), None
    padded, masks = [], []
    for cond, text in zip(conds, texts, strict=True):
        mask = cond.text_mask
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        missing = length - text.shape[1]
        padded.append(torch.nn.functional.pad(text, (0, 0, 0, missing)))
        masks.append(torch.nn.functional.pad(mask, (0, missing)))
    return torch.cat(padded), torch.cat(masks)


@dataclass(frozen=True, kw_only=True, eq=False)
class GuidedPrediction:
    """What guidance made for one x_t, and what it made it of."""

    guided: Prediction
    conditional: Prediction
    unconditional: Prediction


class Guidance(Denoiser, Protocol):
    """A denoiser that contrasts cond with cond.uncond, and shows the two when asked."""

    def parts(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None
    ) -> GuidedPrediction: ...


@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance:
    """eps_uncond + guidance_scale (eps_cond - eps_uncond) (arXiv 2207.12598, Eq. 6).

    guidance_scale = 1 is the conditional prediction, 0 the unconditional one; the paper's w is
    guidance_scale - 1. The two predictions take one call of 2B samples, or two calls where a
    field is present in one of the conditionings only (a camera dropped from `uncond`). At scale 1
    the guided one alone is one prediction: only `parts` asks for the other.

    Calling it without cond.uncond raises ValueError.
    """

    denoiser: Denoiser
    guidance_scale: float

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        if self.guidance_scale == 1:
            cond, _ = _with_uncond(cond, type(self).__name__)
            return self.denoiser(x_t, t, _without_uncond(cond).expand(len(x_t)))
        return self.parts(x_t, t, cond).guided

    def parts(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> GuidedPrediction:
        cond, uncond = _with_uncond(cond, type(self).__name__)
        conditional, unconditional = _predict_each(self.denoiser, x_t, t, [cond, uncond])
        guided = conditional.with_value(
            torch.lerp(unconditional.value, conditional.value, self.guidance_scale)
        )
        return GuidedPrediction(guided=guided, conditional=conditional, unconditional=unconditional)


@dataclass(frozen=True, eq=False)
class PerpNegGuidance:
    """Negative prompts that cannot undo the positive one (Perp-Neg, arXiv 2304.04968, Eq. 9).

    With d_i = eps_i - eps_uncond, the guided prediction is
    eps_uncond + guidance_scale (d_pos - sum_i w_i d_i_perp), where d_i_perp is the part of d_i
    orthogonal, sample by sample, to d_pos. All 2 + N predictions take one batched call.

    negatives         N conditionings, each of one sample or of B
    negative_weights  [N] or [N, B], how strongly each is avoided (per sample: in 3D the weights
                      follow the camera's azimuth); 0 is not at all
    """

    denoiser: Denoiser
    guidance_scale: float
    negatives: Sequence[Conditioning]
    negative_weights: Tensor

    def __post_init__(self) -> None:
        if self.negative_weights.ndim not in (1, 2) or len(self.negative_weights) != len(
            self.negatives
        ):
            raise ValueError(
                f"negative_weights must have shape [{len(self.negatives)}] or "
                f"[{len(self.negatives)}, B], one row per negative conditioning, got "
                f"{list(self.negative_weights.shape)}."
            )

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return self.parts(x_t, t, cond).guided

    def parts(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> GuidedPrediction:
        cond, uncond = _with_uncond(cond, type(self).__name__)
        positive, unconditional, *others = _predict_each(
            self.denoiser, x_t, t, [cond, uncond, *self.negatives]
        )
        toward = positive.value - unconditional.value
        direction = toward
        for prediction, weight in zip(others, self.negative_weights, strict=True):
            away = _orthogonal_part(prediction.value - unconditional.value, toward)
            direction = direction - per_sample(weight.expand(len(x_t)), x_t) * away
        guided = positive.with_value(unconditional.value + self.guidance_scale * direction)
        return GuidedPrediction(guided=guided, conditional=positive, unconditional=unconditional)


def _with_uncond(cond: Conditioning | None, wrapper: str) -> tuple[Conditioning, Conditioning]:
    if cond is None or cond.uncond is None:
        raise ValueError(
            f"{wrapper} needs cond.uncond, the conditioning of the empty or negative prompt."
        )
    return cond, cond.uncond


def _predict_each(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, conds: Sequence[Conditioning]
) -> list[Prediction]:
    """The prediction for x_t under each of `conds`, in one call where they can be batched."""
    batch = len(x_t)
    # The denoiser under guidance is asked for plain predictions: it gets no uncond of its own.
    plain = [_without_uncond(cond).expand(batch) for cond in conds]
    if not can_concatenate(plain):
        return [denoiser(x_t, t, cond) for cond in plain]
    n = len(plain)
    repeated = x_t.repeat(n, *[1] * (x_t.ndim - 1))
    return denoiser(repeated, t.repeat(n), concatenate(plain)).split([batch] * n)


def _without_uncond(cond: Conditioning) -> Conditioning:
    if cond.uncond is None:
        return cond
    return replace(cond, uncond=None)


def _orthogonal_part(vector: Tensor, axis: Tensor) -> Tensor:
    """`vector` less its projection on `axis`, each [B, ...], sample by sample.

    The projection on an axis of zero is zero.
    """
    flat_vector, flat_axis = vector.flatten(1), axis.flatten(1)
    squared = (flat_axis * flat_axis).sum(1)
    inner = (flat_vector * flat_axis).sum(1)
    scale = torch.where(squared > 0, inner / squared.where(squared > 0, 1.0), 0.0)
    return vector - per_sample(scale, axis) * axis
