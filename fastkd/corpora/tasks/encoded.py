"""Rows that were encoded elsewhere: their padding, attention masks and names of labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastkd.corpora.labels import IGNORE_INDEX as IGNORE_INDEX

Row = dict[str, Any]

# Fields with a value for each token.
_PER_TOKEN = ("position_ids", "token_type_ids")
# Other names of ``labels``, which tutorials and `transformers` use for classes.
LABELS = ("label", "label_ids")
# The columns of encoded rows that are read.
ENCODED = ("input_ids", "attention_mask", "labels", *_PER_TOKEN, *LABELS)


def unpadded(row: Row, labels_per_token: bool) -> Row:
    """The row without the padding that its ``attention_mask`` marks at its ends, and without that mask.

    A mask that also leaves out tokens between others is kept, and the labels of those tokens are ignored. So
    rows that were padded on the left or right elsewhere give the batch of the bare rows. A column ``label``
    is renamed to ``labels``.

    Args:
        row: an encoded row, which is not changed.
        labels_per_token: whether there is a label for each token of ``input_ids``.

    Raises:
        ValueError: a mask of another length, or one that leaves no token.
    """
    if "labels" not in row:
        named = next((name for name in LABELS if name in row), None)
        if named is not None:
            row = {**{name: value for name, value in row.items() if name != named}, "labels": row[named]}
    if "attention_mask" not in row:
        return row
    row = dict(row)
    mask = np.asarray(row.pop("attention_mask")) != 0
    if len(mask) != len(row["input_ids"]):
        raise ValueError(
            f"a row has {len(row['input_ids'])} input_ids and an attention_mask of {len(mask)}: "
            "they must have the same length"
        )
    if mask.all():
        return row
    if not mask.any():
        raise ValueError("the attention_mask of a row leaves out all its tokens: remove the row")
    first, last = int(mask.argmax()), len(mask) - int(mask[::-1].argmax())
    inside = mask[first:last]
    fields = ("input_ids", *_PER_TOKEN, *(["labels"] if labels_per_token else []))
    for name in fields:
        if name in row:
            row[name] = row[name][first:last]
    if not inside.all():
        if "position_ids" in row:
            raise ValueError(
                "a row has position_ids and an attention_mask with gaps between its tokens: leave out one of "
                "them"
            )
        row["attention_mask"] = inside.astype(np.int64).tolist()
        if labels_per_token:
            labels = np.asarray(row.get("labels", row["input_ids"]))
            row["labels"] = np.where(inside, labels, IGNORE_INDEX).tolist()
    return row
