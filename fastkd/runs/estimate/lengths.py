"""Estimates the batches' lengths from at most some thousand rows."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from fastkd.corpora.spans import TEACHER_IDS
from fastkd.corpora.tasks import IGNORE_INDEX
from fastkd.runs.estimate.step import Shape
from fastkd.runs.samples import look_at
from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.loading import check_tokens, load_tokenizer

BATCHES = 200
# Number of those whose shapes are kept.
DRAWN = 13
# Number of batches that transformers sorts by length together, if there are four times as many.
GROUPED = 50

# Tokens of a row's input and of its target.
Size = tuple[int, int]


@dataclass(frozen=True)
class Lengths:
    """Lengths of a data set's rows and batches.

    Attributes:
        rows: number of rows (of packed pieces with ``packing``); None where the data could not be read.
        longest, usual: shape of the largest batch, and of a batch of mean padded length.
        drawn: shapes of some batches as an epoch has them, the middle one first, the extremes last.
        targets: mean number of labels of a row.
        prompt: tokens of the longest prompt.
        whole: whether no row can be longer than ``longest``.
        source: a phrase that states where the lengths come from.
    """

    rows: int | None
    longest: Shape
    usual: Shape
    targets: float
    prompt: int
    whole: bool
    source: str
    drawn: tuple[Shape, ...] = ()


def lengths(field: str, args: DistillationConfig, rows: int) -> Lengths | None:
    """Lengths for batches of ``rows`` rows of ``train_file`` or ``eval_file``; None where there is no such
    data.

    Where the training data or the tokenizer cannot be read, every row counts as ``max_length`` tokens.
    """
    target = args.max_target_length if args.task == "seq2seq" else 0
    full = Shape(rows, args.max_length, target)
    try:
        tokenizer = load_tokenizer(args)
        theirs = check_tokens(args, tokenizer) if args.cross_tokenizer is not None else None
        sample = look_at(field, args, tokenizer, theirs)
    except ValueError as error:
        if field == "eval_file":
            return None
        return Lengths(
            None, full, full, float(target or args.max_length), 0, True, f"max_length, since {error}"
        )
    if sample is None:
        return None
    if not sample.kept:
        return Lengths(sample.becomes, full, full, float(target or args.max_length), 0, True, "max_length")
    sizes = [(len(row["input_ids"]), len(row["labels"]) if target else 0) for row in sample.kept]
    targets = sum(_learned(row["labels"]) for row in sample.kept) / len(sizes)
    if args.packing:
        tokens = sum(length for length, _ in sizes) * sample.total / len(sizes)
        pieces = math.ceil(tokens / args.max_length)
        share = targets * len(sizes) / sum(length for length, _ in sizes)
        return Lengths(
            pieces, full, full, share * args.max_length, 0, True, f"packed, from {sample.looked_at}"
        )
    share = 1.0
    if theirs is not None:
        share = sum(len(row[TEACHER_IDS]) for row in sample.kept) / sum(size[0] for size in sizes)
    batches = _drawn(sizes, rows, sample.total, plain(args.train_sampling_strategy) == "group_by_length")
    padded = sorted((max(row[0] for row in batch), max(row[1] for row in batch)) for batch in batches)
    usual = [round(sum(size[i] for size in padded) / len(padded)) for i in (0, 1)]
    longest = [max(size[i] for size in sizes) for i in (0, 1)]
    return Lengths(
        sample.becomes,
        Shape(rows, longest[0], longest[1], share),
        Shape(rows, max(usual[0], 1), max(usual[1], 0), share),
        targets,
        max(size[0] - _learned(row["labels"]) for size, row in zip(sizes, sample.kept, strict=True)),
        len(sample.rows) == sample.total,
        f"the longest of {sample.looked_at}",
        tuple(Shape(rows, max(length, 1), target, share) for length, target in _from_the_middle(padded)),
    )


def _from_the_middle(padded: list[Size]) -> list[Size]:
    """Some of the sorted lengths, at equal distances, the middle one first and the extremes last."""
    last, middle = len(padded) - 1, (DRAWN - 1) / 2
    order = sorted(range(DRAWN), key=lambda i: abs(i - middle))
    return [padded[round(i * last / (DRAWN - 1))] for i in order]


def _drawn(sizes: list[Size], rows: int, total: int, grouped: bool) -> list[list[Size]]:
    """Batches like those of a shuffled epoch, each of which is padded to its longest row.

    Args:
        sizes: lengths of some rows.
        rows: rows in a batch.
        total: rows of the whole data set.
        grouped: whether batches are cut from a sorted part of the epoch, as ``group_by_length`` of
            transformers does.
    """
    draw = random.Random(0)
    together = max(1, min(total // (4 * rows), GROUPED)) if grouped else 1
    found: list[list[Size]] = []
    while len(found) < BATCHES:
        part = sorted(draw.choices(sizes, k=together * rows)) if grouped else draw.choices(sizes, k=rows)
        found += [part[start : start + rows] for start in range(0, len(part), rows)]
    return found


def _learned(labels: list[int] | int) -> int:
    return sum(x != IGNORE_INDEX for x in labels) if isinstance(labels, list) else int(labels != IGNORE_INDEX)
