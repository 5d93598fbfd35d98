"""The interface of files with log-probabilities: rows are found by their tokens, and read one at a time."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkd.corpora.logprobs.position import RENORMALISED, Position, row_key
from fastkd.files import file_digest


@dataclass(frozen=True)
class Place:
    """Where a row's log-probabilities are.

    Attributes:
        at: the place in a file, as the layout knows it.
        where: names the file and the row in messages.
        begin: the number of the first token, counted from 0, that has a distribution. It is at least 1,
            since no token comes before the first.
    """

    at: Any
    where: str
    begin: int = 1


class LogprobFiles(ABC):
    """Log-probabilities in files, found by the tokens of a row. Only places in the files are held in memory.

    A layout reads every row once in its constructor, checks it, and adds it with :meth:`add`.

    Attributes:
        paths: the files.
        entries: K, the most log-probabilities that a token has.
        largest: the largest token id among them, and the place that has it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.entries = 0
        self.largest = (-1, "")
        self._places: dict[bytes, Place] = {}
        self._least = math.inf

    def add(self, ids: Sequence[int], place: Place, largest: int, least: float) -> None:
        """Remember where a row is. A row that is there already keeps its first place.

        Args:
            ids: the row's tokens.
            place: its place.
            largest: its largest token id.
            least: the smallest sum of the probabilities of one of its tokens.
        """
        self._places.setdefault(row_key(ids), place)
        self._least = min(self._least, least)
        if largest > self.largest[0]:
            self.largest = (largest, place.where)

    @property
    def renormalised(self) -> bool:
        """Whether the probabilities of every token sum to 1, so that they may not be those over the whole
        vocabulary.
        """
        return self._least > 1 - RENORMALISED

    def __len__(self) -> int:
        return len(self._places)

    def place(self, ids: Sequence[int]) -> Place | None:
        """The place of the row with exactly these tokens; None if there is none."""
        return self._places.get(row_key(ids))

    @abstractmethod
    def find(self, ids: Sequence[int]) -> list[Position]:
        """The distributions of all tokens but the first, empty before the row's ``begin``. The row must be
        there.
        """

    def digest(self) -> str:
        """A digest of all files."""
        return hashlib.sha256("".join(map(file_digest, self.paths)).encode()).hexdigest()
