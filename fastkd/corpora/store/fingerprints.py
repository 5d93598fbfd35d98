"""Hashes of everything that must be unchanged when a cache is used: rows, tokenizer, teacher's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from fastkd.corpora.tasks import IGNORE_INDEX, Task

# Bytes of a row's hash. Any two of 10**9 rows collide with a probability below 10**-20.
ROW_HASH = 16
_AT_ONCE = 1000
_ROW_FIELDS = ("input_ids", "labels", "position_ids", "token_type_ids")


def encoded_rows(rows: Any, first: int = 0, last: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The fields of each encoded row that a model sees: ``input_ids``, ``labels`` and, for packed rows,
    ``position_ids``, for pairs of texts ``token_type_ids``, as int64 arrays.
    """
    last = len(rows) if last is None else last
    if hasattr(rows, "with_format"):
        rows = rows.with_format("numpy", columns=[name for name in _ROW_FIELDS if name in rows.column_names])
    for start in range(first, last, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, last))
        if hasattr(rows, "column_names"):
            columns = rows[start : numbers.stop]
            found: Any = ({name: column[i] for name, column in columns.items()} for i in range(len(numbers)))
        else:
            found = (rows[number] for number in numbers)
        for row in found:
            made = {name: np.asarray(row[name], np.int64) for name in _ROW_FIELDS if name in row}
            yield {"labels": made["input_ids"], **made}


def row_hash(row: dict[str, np.ndarray]) -> bytes:
    """BLAKE2b over a row's names, lengths and numbers."""
    digest = hashlib.blake2b(digest_size=ROW_HASH)
    for name in _ROW_FIELDS:
        if name in row:
            digest.update(f"{name} {row[name].shape};".encode())
            digest.update(row[name].astype("<i8").tobytes())
    return digest.digest()


def survey(rows: Any, task: Task, title: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each row, ``(rows, 16)`` uint8, and its number of targets, ``(rows,)`` int64."""
    hashes = np.empty((len(rows), ROW_HASH), np.uint8)
    targets = np.empty(len(rows), np.int64)
    bar = tqdm(encoded_rows(rows), total=len(rows), desc=title, unit="row", delay=2, disable=title is None)
    for i, row in enumerate(bar):
        hashes[i] = np.frombuffer(row_hash(row), np.uint8)
        targets[i] = int((task.targets(torch.tensor(row["labels"])[None]) != IGNORE_INDEX).sum())
    return hashes, targets


def data_digest(hashes: np.ndarray) -> str:
    """A digest of all rows in their order."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides token ids: vocabulary, special tokens, normalisation, splitting.

    The padding token is left out, since no id of a text depends on it. Truncation and padding are left out
    too, since each call sets them.
    """
    specials = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
    content: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in specials}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())
        for name in ("truncation", "padding", "decoder"):
            model.pop(name, None)
        content["model"] = model
    else:
        content["class"] = type(tokenizer).__name__
        content["vocabulary"] = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        pieces = getattr(tokenizer, "sp_model", None)
        if pieces is not None:
            content["pieces"] = hashlib.sha256(pieces.serialized_model_proto()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(model: nn.Module, title: str | None = None) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a model's parameters and buffers."""
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in tqdm(sorted(state), desc=title, unit="tensor", delay=2, disable=title is None):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        if plain.numel():
            raw: Any = plain.view(torch.uint8).numpy()
            digest.update(raw)
    return digest.hexdigest()
