"""The disk space of a cache of the teacher's distributions."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastkd.corpora.labels import REGRESSION
from fastkd.corpora.store.encoding import bytes_per_token, sampled_bytes
from fastkd.runs.cache_contents import Measured, is_small, measure
from fastkd.runs.samples import look_at
from fastkd.trainer.config import CACHE_KINDS, DistillationConfig
from fastkd.trainer.loading import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSize:
    """Size of one kind of cache on disk.

    Attributes:
        per_token: bytes for each target.
        head: bytes of the teacher's head, which is stored once.
        total: bytes of the whole cache; None where the number of rows is not known.
        range: fewest and most bytes for each target, where ``per_token`` assumes how many draws are distinct;
            None where it was measured or follows from the settings.
        distinct: distinct columns per token that were measured, of a ``sampled`` cache.
        mass, low: the probability that the entries of a ``topk`` cache hold at temperature 1, its mean and
            its 5th percentile, where they were measured.
    """

    per_token: float
    head: int
    total: int | None
    range: tuple[float, float] | None = None
    distinct: float | None = None
    mass: float | None = None
    low: float | None = None


def cache_sizes(
    args: DistillationConfig,
    columns: int,
    hidden: int,
    itemsize: int,
    targets: float | None,
    measured: dict[str, Measured] | None = None,
) -> dict[str, CacheSize]:
    """The size of each kind of cache, with ``cache_top_k`` and ``cache_samples`` of the configuration.

    Args:
        columns, hidden, itemsize: the teacher's vocabulary size, the width of its last hidden state (0 leaves
            out the ``hidden`` kind), and the bytes of one of its elements.
        targets: number of targets in all data; None where it is not known.
        measured: what a few rows take, by kind, where the teacher was run.
    """
    found = {}
    measured = measured or {}
    for kind in CACHE_KINDS:
        if kind == "hidden" and not hidden:
            continue
        each = bytes_per_token(kind, columns, args.cache_top_k, args.cache_samples, hidden, itemsize)
        limits = distinct = mass = None
        if kind in measured:
            each = measured[kind].bytes_per_token
            mass = measured[kind].held.mass(1.0) if kind == "topk" else None
            distinct = measured[kind].held.distinct if kind == "sampled" else None
        elif kind == "sampled":
            most = min(args.cache_samples, columns)
            limits = (
                sampled_bytes(columns, args.cache_samples, 1),
                sampled_bytes(columns, args.cache_samples, most),
            )
        head = columns * hidden * itemsize if kind == "hidden" else 0
        total = None if targets is None else round(each * targets) + head
        held = (None, None) if mass is None else (mass.mean, mass.low)
        found[kind] = CacheSize(each, head, total, limits, distinct, *held)
    return found


def measured_rows(args: DistillationConfig) -> dict[str, Measured]:
    """Caches of a few rows of ``train_file``, measured, by kind, where the teacher is small and on this
    machine; nothing where it is not, or where teacher or data cannot be read.
    """
    try:
        if args.problem_type == REGRESSION or not is_small(args):
            return {}
        tokenizer = load_tokenizer(args)
        sample = look_at("train_file", args, tokenizer)
        if sample is None:
            return {}
        return measure(args, sample.rows_of_batches(args), tokenizer, ("topk", "sampled"))
    except (ValueError, OSError, RuntimeError) as error:
        logger.warning("the size of a cache is assumed, since the teacher was not run: %s", error)
        return {}
