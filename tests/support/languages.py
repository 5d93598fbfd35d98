"""Tokenizers that mark languages, and tiny models for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LETTERS = [chr(97 + i) for i in range(26)]


def nllb(**options: Any) -> Any:
    """A text is its language, its letters and the end."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return transformers.NllbTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], **options)


def _scored(codes: list[str]) -> list[tuple[str, float]]:
    named = ["<s>", "<pad>", "</s>", "<unk>"]
    return [
        *((p, 0.0) for p in named),
        ("▁", -2.0),
        *((p, -3.0) for p in LETTERS),
        *((c, 0.0) for c in codes),
    ]


def mbart(**options: Any) -> Any:
    """A text is its letters, the end and its language."""
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    vocab = [*_scored(FAIRSEQ_LANGUAGE_CODES), ("<mask>", 0.0)]
    return transformers.MBartTokenizer(vocab=vocab, **options)


def mbart50(**options: Any) -> Any:
    """A text is its language, its letters and the end."""
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

    vocab = [*_scored(FAIRSEQ_LANGUAGE_CODES), ("<mask>", 0.0)]
    return transformers.MBart50Tokenizer(vocab=vocab, **options)


def m2m100(folder: Path) -> Any:
    """A text is its language, its letters and the end. It needs the package sentencepiece."""
    import json

    import sentencepiece

    text = folder / "text.txt"
    text.write_text("".join(f"{a}{b} {b}{a}\n" for a in LETTERS for b in LETTERS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spm"), vocab_size=60, minloglevel=2
    )
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    return transformers.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


def m2m100_model(seed: int, vocab: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.M2M100Config(
        vocab_size=vocab,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.4,
        dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        **options,
    )
    return transformers.M2M100ForConditionalGeneration(config)


def mbart_model(seed: int, vocab: int, start: int | None) -> Any:
    torch.manual_seed(seed)
    config = transformers.MBartConfig(
        vocab_size=vocab,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.4,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=start,
        forced_eos_token_id=2,
    )
    return transformers.MBartForConditionalGeneration(config)
