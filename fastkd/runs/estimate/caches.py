"""The disk space of a cache of the teacher's distributions."""

from __future__ import annotations

from dataclasses import dataclass

from fastkd.corpora.store.encoding import bytes_per_token
from fastkd.trainer.config import CACHE_KINDS, DistillationConfig


@dataclass(frozen=True)
class CacheSize:
    """Size of one kind of cache on disk.

    Attributes:
        per_token: bytes for each target.
        head: bytes of the teacher's head, which is stored once.
        total: bytes of the whole cache; None where the number of rows is not known.
    """

    per_token: float
    head: int
    total: int | None


def cache_sizes(
    args: DistillationConfig, columns: int, hidden: int, itemsize: int, targets: float | None
) -> dict[str, CacheSize]:
    """The size of each kind of cache, with ``cache_top_k`` and ``cache_samples`` of the configuration.

    Args:
        columns, hidden, itemsize: the teacher's vocabulary size, the width of its last hidden state (0 leaves
            out the ``hidden`` kind), and the bytes of one of its elements.
        targets: number of targets in all data; None where it is not known.
    """
    found = {}
    for kind in CACHE_KINDS:
        if kind == "hidden" and not hidden:
            continue
        each = bytes_per_token(kind, columns, args.cache_top_k, args.cache_samples, hidden, itemsize)
        head = columns * hidden * itemsize if kind == "hidden" else 0
        found[kind] = CacheSize(each, head, None if targets is None else round(each * targets) + head)
    return found
