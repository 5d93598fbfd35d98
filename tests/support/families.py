"""Tiny random models of several families, and two rows of uneven lengths for each task."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from support.tiny import VOCAB, rows


def gpt2(seed: int, hidden: int = 16, layers: int = 1, heads: int = 2, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return transformers.GPT2LMHeadModel(config).to(dtype)


def bart(seed: int, hidden: int = 16, classes: int = 0, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=VOCAB,
        d_model=hidden,
        encoder_layers=1,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        init_std=0.4,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **({"num_labels": classes} if classes else {}),
    )
    kind = (
        transformers.BartForSequenceClassification if classes else transformers.BartForConditionalGeneration
    )
    return kind(config)


def t5(seed: int, hidden: int = 16) -> Any:
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=hidden,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=2.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def bert(seed: int, hidden: int = 16, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


# For each task a student, a teacher and two rows of uneven lengths.
def causal_rows() -> list[dict[str, Any]]:
    long, short = rows(1, seed=4, shortest=9, longest=9)[0], rows(1, seed=3, shortest=5, longest=5)[0]
    return [
        {**long, "labels": [-100] * 3 + long["input_ids"][3:]},  # with a prompt
        {**short, "labels": short["input_ids"]},
    ]


def pair_rows() -> list[dict[str, Any]]:
    return [
        {"input_ids": [5, 6, 7, 8, 9, 10, 2], "labels": [11, 12, 2]},
        {"input_ids": [13, 14, 2], "labels": [15, 16, 17, 18, 2]},
    ]


def class_rows() -> list[dict[str, Any]]:
    return [{"input_ids": [5, 6, 7, 8, 9, 2], "labels": 2}, {"input_ids": [10, 11, 2], "labels": 0}]
