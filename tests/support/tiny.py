"""Tiny random models and data."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 48


def llama(
    seed: int = 0,
    hidden: int = 16,
    vocab: int = VOCAB,
    tied: bool = True,
    layers: int = 1,
    positions: int = 32,
) -> Any:
    """A Llama with logits large enough that a wrong loss is noticed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def rows(
    count: int, seed: int = 0, vocab: int = VOCAB, shortest: int = 3, longest: int = 9
) -> list[dict[str, Any]]:
    """Token sequences of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, vocab, (n,), generator=generator).tolist()} for n in lengths]
