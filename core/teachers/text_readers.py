"""The two kinds of text encoder that all families read prompts with."""

# transformers makes some names at run time.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
    T5EncoderModel,
    T5TokenizerFast,
)

from core.teachers.pretrained import TextReader

__all__ = ["clip_reader", "t5_reader"]


def clip_reader(suffix: str = "", kind: type[PreTrainedModel] = CLIPTextModel) -> TextReader:
    """CLIP in the components whose names end with `suffix`; it reads what its tokenizer says."""
    return TextReader(
        encoder=f"text_encoder{suffix}",
        tokenizer=f"tokenizer{suffix}",
        encoder_class=kind,
        tokenizer_class=CLIPTokenizer,
    )


def t5_reader(suffix: str = "", *, max_tokens: int) -> TextReader:
    """T5's encoder in the components whose names end with `suffix`."""
    return TextReader(
        encoder=f"text_encoder{suffix}",
        tokenizer=f"tokenizer{suffix}",
        encoder_class=T5EncoderModel,
        tokenizer_class=T5TokenizerFast,
        max_tokens=max_tokens,
    )
