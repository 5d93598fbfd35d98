"""Rows of tokens that another program has encoded, perhaps with several documents in a row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from fastkd.corpora.tasks.encoded import IGNORE_INDEX, Row


def documents(mask: np.ndarray) -> Iterator[slice]:
    """The places of the documents in a row.

    Args:
        mask: ``(tokens,)`` integers, an ``attention_mask``. It is 0 for padding and 1 for all other tokens,
            or numbers the documents of a packed row from 1, as packing for FlashAttention and DistillKit do.

    Raises:
        ValueError: padding between the tokens of one document.
    """
    changes = np.flatnonzero(np.diff(mask)) + 1
    bounds = [0, *changes.tolist(), len(mask)]
    found = [slice(first, last) for first, last in pairwise(bounds) if last > first and mask[first]]
    if len(found) > len(set(mask[mask != 0].tolist())):
        raise ValueError(
            "an attention_mask has gaps between the tokens of a document: leave those tokens out"
        )
    yield from found


def segments(row: Row) -> Iterator[tuple[list[int], list[bool]]]:
    """The tokens of each document of a row, and which of them are trained on.

    Args:
        row: ``input_ids``, and perhaps ``labels`` and an ``attention_mask``.

    Raises:
        ValueError: columns of different lengths, or labels that are not the tokens.
    """
    if not row["input_ids"]:
        return
    ids = _numbers(row, "input_ids")
    size = len(ids)
    mask = np.ones(size, np.int64) if row.get("attention_mask") is None else _numbers(row, "attention_mask")
    labels = ids if row.get("labels") is None else _numbers(row, "labels")
    for name, values in (("attention_mask", mask), ("labels", labels)):
        if len(values) != size:
            raise ValueError(f"a row has {size} input_ids and {name} of {len(values)}: give as many of both")
    said = labels != IGNORE_INDEX
    if (labels[said] != ids[said]).any():
        raise ValueError(
            f"labels must be the tokens of input_ids at the same places, or {IGNORE_INDEX} where nothing is "
            "learned"
        )
    for document in documents(mask):
        yield ids[document].tolist(), said[document].tolist()


def _numbers(row: Row, name: str) -> np.ndarray:
    try:
        found = np.asarray(row[name])
    except ValueError:
        found = np.empty(0)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{name} must be a list of whole numbers")
    return found.astype(np.int64)
