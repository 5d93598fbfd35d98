"""Collects real text that every Python has: its own standard library and documentation."""

from __future__ import annotations

import hashlib
import os
import pydoc_data.topics
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
# Skipped: installed packages, tables of numbers, and the tests (which many systems leave out).
SKIPPED = {
    "site-packages", "dist-packages", "__pycache__", "encodings", "idle_test", "lib2to3", "pydoc_data",
    "test", "tests", "turtledemo",
}  # fmt: skip


def documents() -> dict[str, str]:
    """The modules of the standard library and the topics of ``help()``: name -> text."""
    root = Path(os.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED & set(parts) and not parts[0].startswith("config-"):
            found["/".join(parts)] = path.read_text("utf-8", errors="replace")
    found.update({f"help/{name}": text for name, text in sorted(pydoc_data.topics.topics.items())})
    return {name: text for name, text in found.items() if text.strip()}


def split(texts: dict[str, str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split whole files, in a shuffled order that depends only on their names and the seed.

    Returns:
        The texts to train on, and about ``share`` of all characters held out.
    """
    order = sorted(texts, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    wanted = share * sum(map(len, texts.values()))
    held_out: list[str] = []
    while order and sum(map(len, held_out)) < wanted:
        held_out.append(texts[order.pop(0)])
    return [texts[name] for name in order], held_out


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``size`` entries (Sennrich et al. 2016, on bytes as in GPT-2)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    bpe.train_from_iterator(texts, trainer, length=len(texts))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT)
