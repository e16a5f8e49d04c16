"""Teaching a text encoder to read the world's captions, before any picture is seen.

A text encoder that learns from the denoising loss alone needs hundreds of thousands of images
before its words mean anything; Stable Diffusion avoids that with one trained beforehand on
captions (CLIP, arXiv 2103.00020). Here the captions' meaning is known exactly, so the encoder is
trained to tell it from the text, and then frozen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sds3d.toybox.captions import sample_caption, view_name
from sds3d.toybox.colors import COLOR_NAMES, COLOR_SYNONYMS
from sds3d.toybox.kinds import KIND_NAMES, KINDS, SUPPORTS
from sds3d.toybox.scenes import SceneSpec, sample_training_spec

PART_NAMES: tuple[str, ...] = tuple(sorted({p for kind in KINDS.values() for p in kind.parts}))

# What a caption can say, one question a row, with its answers; None is "not said".
QUESTIONS: dict[str, tuple[str | None, ...]] = {
    "kind": (None, *KIND_NAMES),
    "color": (None, *COLOR_NAMES),
    "part": (None, *PART_NAMES),
    "part_color": (None, *COLOR_NAMES),
    "support": (None, *SUPPORTS),
    "support_color": (None, *COLOR_NAMES),
    "view": (None, "front", "side", "back", "overhead"),
}


def sample_question(rng: np.random.Generator) -> tuple[str, list[int]]:
    """A caption and its answers, as indices in the order of `QUESTIONS`; sometimes empty."""
    if rng.uniform() < 0.02:
        return "", [0] * len(QUESTIONS)
    spec = sample_training_spec(rng)
    # Uniform in degrees, unlike the pictures' cameras: every view must be read equally well.
    view = (rng.uniform(0, 360), rng.uniform(-20, 80)) if rng.uniform() < 0.5 else None
    caption = sample_caption(spec, rng, view=view)
    said = _said(spec, caption, view)
    return caption, [QUESTIONS[key].index(said[key]) for key in QUESTIONS]


def _said(spec: SceneSpec, caption: str, view: tuple[float, float] | None) -> dict[str, str | None]:
    answers: dict[str, str | None] = {
        "kind": spec.kind,
        "color": spec.color,
        "part": spec.part,
        "part_color": spec.part_color,
        "support": spec.support,
        "support_color": spec.support_color,
        "view": view_name(*view) if view is not None else None,
    }
    # A few captions leave the colour open.
    words = f" {caption.lower().replace(',', ' ')} "
    if not any(f" {name} " in words for name in (spec.color, *COLOR_SYNONYMS[spec.color])):
        answers["color"] = None
    return answers


class CaptionReader(nn.Module):
    """One linear answer to each of `QUESTIONS` from a text feature [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({key: nn.Linear(width, len(a)) for key, a in QUESTIONS.items()})

    def forward(self, text: Tensor) -> list[Tensor]:
        """Logits [B, answers], in the order of `QUESTIONS`."""
        return [head(text) for head in self.heads.values()]


def teach_reading(
    text_encoder: nn.Module,
    encode: Callable[[list[str]], Tensor],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, float, float], None],
) -> float:
    """Train `text_encoder` until its text features answer what their captions say.

    Args:
        text_encoder: Trained in place.
        encode: Text features [B, D] of captions, through `text_encoder`.
        steps, batch, learning_rate: AdamW, falling linearly to zero.
        seed: Of the captions and the answering heads.
        progress: Called every 100 steps with the step, the loss and the share of captions of
            which every answer is right.

    Returns:
        That share over the last 1000 captions or more, none of them trained on at the time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = encode([""])
        reader = CaptionReader(features.shape[1]).to(features.device)
    rng = np.random.default_rng([seed, 11])
    parameters = [*text_encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    recent: list[float] = []
    for step in range(steps):
        pairs = [sample_question(rng) for _ in range(batch)]
        answers = torch.tensor([a for _, a in pairs], device=features.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * (1.0 - step / steps)
        logits = reader(encode([c for c, _ in pairs]))
        loss = sum(
            (F.cross_entropy(row, answers[:, i]) for i, row in enumerate(logits)),
            start=torch.zeros((), device=features.device),
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        right = torch.stack([row.argmax(1) == answers[:, i] for i, row in enumerate(logits)])
        recent = [*recent, float(right.all(0).float().mean())][-max(1, 1000 // batch + 1) :]
        if (step + 1) % 100 == 0:
            progress(step + 1, float(loss.detach()), float(np.mean(recent)))
    return float(np.mean(recent))
