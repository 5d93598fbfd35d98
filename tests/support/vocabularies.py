"""Small tokenizers of different kinds, trained on the same text."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

TEXT = [
    "the cat sat on the mat and the dog sat on the log",
    "a distillation of the tokens of a teacher into those of a student",
    "def sat(cat, mat): return [cat for cat in mat if cat != 1]",
    "naïve café, the 日本語 text 😀",
    "The Cat SAT on THE mat. And then? It slept!",
] * 3  # fmt: skip
KINDS = ("bytes_300", "bytes_400", "metaspace", "wordpiece", "byt5")
END = "</s>"


@functools.cache
def tokenizer(kind: str, end: str = END) -> Any:
    """One of :data:`KINDS`."""
    if kind == "byt5":
        return ByT5Tokenizer()
    special = [end, "<s>", "<unk>"]
    made: Any
    if kind.startswith("bytes"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=int(kind.removeprefix("bytes_")),
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "metaspace":  # as Llama's: bytes where a character is unknown
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=special, limit_alphabet=60, show_progress=False
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, bos_token="<s>", unk_token="<unk>")
    return found


def ids(kind: str, text: str) -> list[int]:
    """The tokens of a text, with its end."""
    made = tokenizer(kind)
    return [*made(text, add_special_tokens=False)["input_ids"], made.eos_token_id]
