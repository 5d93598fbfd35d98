"""Tiny teachers of many families, each with four layers or more that all differ, in directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny import VOCAB
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "id2label": {0: "bad", 1: "good"},
    "label2id": {"bad": 0, "good": 1},
}
_BOTH = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _config(family: str) -> Any:
    t = transformers
    return {
        "llama": lambda: t.LlamaConfig(**_DECODER, tie_word_embeddings=False),
        "tied": lambda: t.LlamaConfig(**_DECODER, tie_word_embeddings=True),
        "qwen2": lambda: t.Qwen2Config(
            **_DECODER, use_sliding_window=True, sliding_window=8, max_window_layers=2
        ),
        "qwen3": lambda: t.Qwen3Config(**_DECODER, head_dim=8),
        "gemma2": lambda: t.Gemma2Config(**_DECODER, head_dim=8, sliding_window=8),
        "gemma3": lambda: t.Gemma3TextConfig(**_DECODER, head_dim=8, sliding_window=8),
        "smollm3": lambda: t.SmolLM3Config(**_DECODER, no_rope_layers=[1, 0, 1, 0]),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCAB, n_embd=16, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        ),
        "gpt_neo": lambda: t.GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=16, num_layers=4, num_heads=4, max_position_embeddings=64,
            attention_types=[[["global", "local"], 2]], window_size=8, bos_token_id=0, eos_token_id=0,
        ),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**_DECODER, **_EXPERTS, mlp_only_layers=[1], head_dim=8),
        "mixtral": lambda: t.MixtralConfig(**_DECODER, num_local_experts=4),
        "t5": lambda: t.T5Config(
            vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=32, num_layers=4, num_decoder_layers=3, num_heads=4,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        ),
        "bart": lambda: t.BartConfig(**_BOTH),
        "marian": lambda: t.MarianConfig(**_BOTH, decoder_vocab_size=VOCAB),
        "m2m_100": lambda: t.M2M100Config(**_BOTH),
        "bert": lambda: t.BertConfig(**_ENCODER),
        "roberta": lambda: t.RobertaConfig(**_ENCODER, pad_token_id=1),
        "modernbert": lambda: t.ModernBertConfig(
            **_ENCODER, pad_token_id=0, local_attention=8, global_attn_every_n_layers=3, **_NO_BOUNDS
        ),
        "distilbert": lambda: t.DistilBertConfig(
            vocab_size=VOCAB, dim=16, hidden_dim=32, n_layers=6, n_heads=4, max_position_embeddings=64,
            id2label=_ENCODER["id2label"], label2id=_ENCODER["label2id"],
        ),
        "albert": lambda: t.AlbertConfig(**_ENCODER, embedding_size=8),
    }[family]()  # fmt: skip


_NO_BOUNDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CAUSAL = [
    "llama", "tied", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "gpt2", "gpt_neo", "qwen3_moe",
    "mixtral",
]  # fmt: skip
SEQ2SEQ = ["t5", "bart", "marian", "m2m_100"]
ENCODERS = ["bert", "roberta", "modernbert", "distilbert", "albert"]
FAMILIES = [*CAUSAL, *SEQ2SEQ, *ENCODERS]
TASK = {
    **dict.fromkeys(CAUSAL, "causal_lm"),
    **dict.fromkeys(SEQ2SEQ, "seq2seq"),
    **dict.fromkeys(ENCODERS, "classification"),
}
AUTO: dict[str, Any] = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "classification": transformers.AutoModelForSequenceClassification,
}


def tokenizer() -> Any:
    """A byte-level tokenizer of ``VOCAB`` tokens: special ones, and the bytes of English text."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)] + list("Ġ.,?!0123456789")
    tokens = {token: i for i, token in enumerate([*special, *letters])}
    bpe = Tokenizer(models.BPE(tokens, [], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def save(folder: Path, family: str, change: Callable[[Any], Any] = lambda model: model) -> Path:
    """A teacher of the family with random weights of every size, and its tokenizer."""
    torch.manual_seed(len(family))
    model = AUTO[TASK[family]].from_config(_config(family))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    change(model).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
