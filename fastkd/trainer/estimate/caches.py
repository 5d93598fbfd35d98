"""What a cache of the teacher's distributions would take on disk."""

from __future__ import annotations

from dataclasses import dataclass

from fastkd.trainer.config import CACHE_KINDS, DistillationConfig
from fastkd.trainer.store.encoding import bytes_per_token


@dataclass(frozen=True)
class CacheSize:
    """Attributes: bytes for each target, bytes of the head that is stored once, and of everything (None
    where the number of rows is not known).
    """

    per_token: float
    head: int
    total: int | None


def cache_sizes(
    args: DistillationConfig, columns: int, hidden: int, itemsize: int, targets: float | None
) -> dict[str, CacheSize]:
    """By kind, with ``cache_top_k`` and ``cache_samples`` as they are set.

    Args:
        columns, hidden, itemsize: the teacher's vocabulary, the width of its last hidden state (0 where it
            has no linear head over a vocabulary), and bytes of one number of it.
        targets: in all data.
    """
    found = {}
    for kind in CACHE_KINDS:
        if kind == "hidden" and not hidden:
            continue
        each = bytes_per_token(kind, columns, args.cache_top_k, args.cache_samples, hidden, itemsize)
        head = columns * hidden * itemsize if kind == "hidden" else 0
        found[kind] = CacheSize(each, head, None if targets is None else round(each * targets) + head)
    return found
