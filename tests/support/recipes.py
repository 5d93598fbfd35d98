"""Runs the commands of a page of docs/ as its reader types them, with models and runs that are small."""

from __future__ import annotations

import re
from pathlib import Path

from support.tiny import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastkd.cli.fields_read import READ_BY

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(yaml|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Options that make a run small enough for a test; each command gets those that it accepts.
SHORT = ["--use-cpu", "--max-steps", "3", "--save-strategy", "no", "--max-completion-length", "4"]


def blocks(page: str) -> list[tuple[str, str]]:
    """The kind (``yaml`` or ``sh``) and the text of each configuration and list of commands of a page."""
    return BLOCK.findall((DOCS / page).read_text("utf-8"))


def commands(page: str) -> list[str]:
    return [line for kind, text in blocks(page) if kind == "sh" for line in text.strip().splitlines()]


def write_configurations(page: str, folder: Path) -> None:
    """Write each configuration that begins with its name into ``folder``."""
    for kind, text in blocks(page):
        if kind == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", text)):
            (folder / name[1]).write_text(text)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte and the end of a text."""
    tokens = {symbol: i for i, symbol in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(tokens, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def save_model(folder: Path, hidden: int, layers: int) -> None:
    """A language model with random weights and a tokenizer of bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    llama(hidden, hidden=hidden, vocab=len(tokenizer), layers=layers, positions=320).save_pretrained(folder)


def short(command: str) -> list[str]:
    """The options of ``SHORT`` that a command reads."""
    return [
        argument
        for place, argument in enumerate(SHORT)
        if command
        in READ_BY.get(
            (argument if argument[:2] == "--" else SHORT[place - 1])[2:].replace("-", "_"), [command]
        )
    ]
