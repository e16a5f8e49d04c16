"""The text encoder's own lessons: the answers are the captions', and a reader learns them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sds3d.toybox.captions import vocabulary
from sds3d.toybox.colors import COLOR_SYNONYMS
from sds3d.toybox.kinds import KINDS
from sds3d.toybox.reading import QUESTIONS, sample_question, teach_reading


def answers_of(indices: list[int]) -> dict[str, str | None]:
    rows = zip(QUESTIONS.items(), indices, strict=True)
    return {key: options[i] for (key, options), i in rows}


def test_every_answer_is_said_in_its_caption() -> None:
    rng = np.random.default_rng(0)
    seen: set[tuple[str, str | None]] = set()
    for _ in range(3000):
        caption, indices = sample_question(rng)
        answers = answers_of(indices)
        seen |= set(answers.items())
        words = f" {caption.lower().replace(',', ' ')} "
        if not caption:
            assert not any(answers.values())
            continue
        kind = answers["kind"]
        assert kind is not None
        assert any(name in words for name in (kind, *KINDS[kind].synonyms))
        for key in ("color", "part_color", "support_color"):
            color = answers[key]
            if color is not None:
                assert any(f" {name} " in words for name in (color, *COLOR_SYNONYMS[color]))
        for key in ("part", "view"):
            said = answers[key]
            named = said is None or said in words or (said, "top") == ("overhead", "top")
            assert named or (said == "overhead" and ("top" in words or "above" in words))
        assert (answers["support"] is None) == (answers["support_color"] is None)
        assert (answers["part"] is None) == (answers["part_color"] is None)
    # Nothing that could be asked is never answered.
    missing = {(k, a) for k, options in QUESTIONS.items() for a in options} - seen
    assert not missing


class BagOfWords(nn.Module):
    """The mean of word vectors: enough to name a kind, blind to who wears which colour."""

    def __init__(self) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(vocabulary())}
        self.bag = nn.EmbeddingBag(len(self.index), 48, mode="sum")

    def forward(self, captions: list[str]) -> Tensor:
        words = [[self.index[w] for w in c.lower().replace(",", " ,").split()] for c in captions]
        starts = np.cumsum([0, *[len(w) for w in words[:-1]]])
        flat = torch.tensor([i for w in words for i in w], dtype=torch.long)
        return self.bag(flat, torch.from_numpy(starts))


def test_an_encoder_learns_to_answer() -> None:
    torch.manual_seed(0)
    encoder = BagOfWords()
    losses: list[float] = []
    before = encoder.bag.weight.detach().clone()
    share = teach_reading(
        encoder,
        encoder,
        steps=200,
        batch=64,
        learning_rate=3e-2,
        seed=0,
        progress=lambda step, loss, right: losses.append(loss),
    )
    assert len(losses) == 2
    # Guessing by frequency costs about 9 nats in all.
    assert losses[-1] < 3
    assert share > 0.3  # of captions with every answer right, colours of two things among them
    assert not torch.equal(before, encoder.bag.weight)
