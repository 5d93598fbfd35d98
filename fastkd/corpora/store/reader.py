"""Reads a cache from the disk, one row at a time, so that memory does not grow with the cache."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from fastkd.corpora.store.encoding import Entries
from fastkd.corpora.store.manifest import CACHES, Manifest

# Number of shards that stay mapped in each process; opening one again costs a fraction of a millisecond.
_KEPT_OPEN = 8


class CacheReader:
    """Reads a complete cache.

    A data loader can copy it to its workers, where each process opens the shards that it needs.
    :meth:`verify` must be called once before any shard is read.

    Raises:
        ValueError: no cache, an incomplete one, or a manifest that cannot be trusted.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest.read(folder)
        if self.manifest.kind not in CACHES:
            raise ValueError(f"{folder} is a generated set, not a cache: give it as train_file")
        self.manifest.require_complete("cache")
        self._first = [shard.first for shard in self.manifest.shards]
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._verified = False

    def __len__(self) -> int:
        return self.manifest.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def verify(self, title: str | None = None) -> None:
        """Compare every file with its checksum, on the first call only; as :meth:`Manifest.verify`."""
        if not self._verified:
            self.manifest.verify(title)
            self._verified = True

    def row_hashes(self, number: int) -> np.ndarray:
        """The hashes of a shard's rows, ``(rows, 16)`` uint8."""
        return self._shard(number).get_slice("row_hashes")[:].numpy()

    def all_row_hashes(self) -> np.ndarray:
        """The hashes of all rows, ``(rows, 16)`` uint8."""
        return np.concatenate([self.row_hashes(number) for number in range(len(self.manifest.shards))])

    def entries(self, row: int) -> Entries:
        """A row's entries in a ``topk`` or ``sampled`` cache."""
        shard, (token, entry), (next_token, next_entry) = self._place(row)
        return Entries(
            shard.get_slice("pages")[token:next_token].numpy(),
            shard.get_slice("low")[entry:next_entry].numpy(),
            shard.get_slice("values")[entry:next_entry].numpy(),
        )

    def hidden(self, row: int) -> Tensor:
        """A row's hidden states in a ``hidden`` cache, ``(tokens, H)``."""
        shard, (token, _), (next_token, _) = self._place(row)
        return shard.get_slice("hidden")[token:next_token]

    def head(self) -> dict[str, Tensor]:
        """``weight`` and, if the head has one, ``bias`` of a ``hidden`` cache's head.

        Raises:
            ValueError: a cache without one.
        """
        if self.manifest.head is None:
            raise ValueError(f"{self.manifest.folder} holds no head: make it again")
        with safe_open(self.manifest.folder / self.manifest.head.name, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict

    def _place(self, row: int) -> tuple[Any, list[int], list[int]]:
        """A row's shard, and the (token, entry) at which the row begins and ends."""
        number = bisect_right(self._first, row) - 1
        shard = self._shard(number)
        at = row - self._first[number]
        begin, end = shard.get_slice("offsets")[at : at + 2].tolist()
        return shard, begin, end

    def _shard(self, number: int) -> Any:
        if not self._verified:
            raise RuntimeError("a cache is read only after verify()")
        if number not in self._open:
            path = self.manifest.folder / self.manifest.shards[number].name
            self._open[number] = safe_open(path, "pt")
            if len(self._open) > _KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]
