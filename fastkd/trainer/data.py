"""From local files to batches of tokens."""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from fastkd.trainer.config import DistillationConfig

logger = logging.getLogger(__name__)

READERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_file(field: str, pattern: str, args: DistillationConfig) -> Dataset:
    """The rows of a local file (or of all that match a pattern), under our column names.

    A ``txt`` file holds one text per line; with ``packing`` it is one text, line breaks kept.

    Raises:
        ValueError: no such file, a format we do not read, a mapped column that is not there.
    """
    from datasets import load_dataset

    files = sorted(glob.glob(pattern)) or ([pattern] if Path(pattern).exists() else [])
    if not files:
        raise ValueError(f"{field}: there is no file {pattern!r}")
    reader = READERS.get(Path(files[0]).suffix.lower())
    if reader is None:
        raise ValueError(f"{field}: {files[0]!r} is not one of {', '.join(READERS)}")
    options = {"sample_by": "document"} if reader == "text" and args.packing else {}
    mapping = args.column_mapping or {}
    if not isinstance(mapping, dict):
        raise ValueError(f"column_mapping must be {{our name: the file's}}, not {mapping!r}")
    rows = load_dataset(reader, data_files=files, split="train", **options)
    for ours, theirs in mapping.items():
        if theirs not in rows.column_names:
            raise ValueError(
                f"{field}: column_mapping names {theirs!r}, but there are {', '.join(rows.column_names)}"
            )
        rows = rows.rename_column(theirs, ours)
    return rows


def tokenize(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: DistillationConfig, field: str
) -> Dataset:
    """``text`` rows to ``input_ids`` rows of at most ``max_length`` tokens, each text closed by end-of-text.

    With ``packing`` the texts follow one another and are cut into pieces, none of them lost; without, a text
    that is too long is cut short, and a warning says how many were.

    Raises:
        ValueError: no ``text`` column, or no text at all.
    """
    if "text" not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise ValueError(
            f"{field} has no column 'text' (it has {columns}): name it with column_mapping {{text: ...}}"
        )
    eos = tokenizer.eos_token_id

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [text for text in batch["text"] if text]
        # `verbose=False`: texts longer than the model's window are our own business, handled below.
        encoded = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"] if texts else []
        if eos is not None:
            encoded = [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]
        if args.packing:
            stream = [token for ids in encoded for token in ids]
            pieces = [stream[i : i + args.max_length] for i in range(0, len(stream), args.max_length)]
            cut = [False] * len(pieces)
        else:
            pieces = [ids[: args.max_length] for ids in encoded]
            cut = [len(ids) > args.max_length for ids in encoded]
        # A single token predicts nothing.
        kept = [i for i, piece in enumerate(pieces) if len(piece) > 1]
        return {"input_ids": [pieces[i] for i in kept], "cut": [cut[i] for i in kept]}

    with args.main_process_first(desc=f"tokenizing {field}"):
        tokens = rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"tokenizing {field}")
    if len(tokens) == 0:
        raise ValueError(f"{field} holds no text")
    if cut := sum(tokens["cut"]):
        logger.warning(
            "%s: %d of %d texts are longer than max_length=%d and were cut; packing: true loses nothing",
            *(field, cut, len(tokens), args.max_length),
        )
    return tokens.remove_columns("cut")


@dataclass
class CausalCollator:
    """Pads on the right. Padding is masked in the labels by position, so a real end-of-text still counts."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of ``input_ids`` (and ``labels``, if they differ) to int64 ``(batch, longest)`` tensors."""
        lengths = [len(row["input_ids"]) for row in rows]
        shape = (len(rows), max(lengths))
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, -100)
        mask = torch.zeros(shape, dtype=torch.long)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[i, :length] = torch.as_tensor(row["input_ids"])
            labels[i, :length] = torch.as_tensor(row.get("labels", row["input_ids"]))
            mask[i, :length] = 1
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
