"""Texts of a classifier without a label, in training: which rows are kept, and which labels count."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from fastkd.corpora.known_columns import columns_of
from fastkd.corpora.labels import IGNORE_INDEX, UNLABELLED, is_masked, is_unlabelled
from fastkd.corpora.tasks.encoded import LABELS
from fastkd.corpora.unlabelled import missing_labels, taught_without_labels
from fastkd.trainer.config import DistillationConfig

logger = logging.getLogger(__name__)


def learns_from_labels_alone(args: DistillationConfig) -> bool:
    """Whether a run is a classifier's that no teacher tells anything about texts without a label."""
    return args.task == "classification" and not taught_without_labels(args)


def learnable(rows: Any, args: DistillationConfig, field: str) -> Any:
    """The encoded training rows of a classifier from which its run learns: without a teacher's loss, those
    without a label are left out. The log says how many there are.

    A stream, or a data set that is no list and none of `datasets`, is returned as it is; :func:`with_labels`
    masks its labels, batch by batch.

    Args:
        rows: the encoded rows.
        args: the settings of the run.
        field: name of the rows, for messages.

    Raises:
        ValueError: rows without a label that the loss cannot take, or no label at all for a loss that needs
            one.
    """
    labels = _labels(rows) if args.task == "classification" else []
    missing = [is_unlabelled(label) for label in labels]
    if not any(missing):
        return rows
    known = sum(not none and not is_masked(label) for none, label in zip(missing, labels, strict=True))
    if (sentence := missing_labels(known, sum(missing), args, field, columns_of(rows))) is not None:
        raise ValueError(sentence)
    alone = learns_from_labels_alone(args)
    if args.process_index == 0:
        logger.warning(
            "%s: %s of %s texts have no label and are %s",
            *(field, f"{sum(missing):,}", f"{len(labels):,}"),
            "left out: the others alone are learned from, without a teacher"
            if alone
            else "learned from the teacher alone, without cross-entropy",
        )
    if not alone:
        return rows
    numbers = [number for number, none in enumerate(missing) if not none]
    return rows.select(numbers) if hasattr(rows, "select") else [rows[number] for number in numbers]


def with_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with those labels masked that say that there is none, for a loss that only reads labels."""
    labels = batch.get("labels")
    return batch if not isinstance(labels, Tensor) else {**batch, "labels": known_labels(labels)}


def known_labels(labels: Tensor) -> Tensor:
    """The labels with those masked that say that there is none."""
    missing = labels.isnan() if labels.is_floating_point() else labels == UNLABELLED
    return labels.masked_fill(missing, IGNORE_INDEX)


def _labels(rows: Any) -> list[Any]:
    """The labels of all rows, as plain numbers and lists; none where the rows are not in memory at once."""
    if isinstance(rows, list):
        named = [next((row[name] for name in ("labels", *LABELS) if name in row), None) for row in rows]
        found = None if any(label is None for label in named) else named
    elif hasattr(rows, "select") and not isinstance(rows, IterableDataset) and hasattr(rows, "__len__"):
        name = next((name for name in ("labels", *LABELS) if name in columns_of(rows)), None)
        found = None if name is None else list(rows.with_format(None)[name])
    else:
        found = None
    plain: Any = found or []
    return [x.tolist() if hasattr(x, "tolist") else x for x in plain]
