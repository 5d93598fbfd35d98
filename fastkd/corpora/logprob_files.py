"""Reads a teacher's log-probabilities from JSON lines, as vLLM gives them for the tokens of a prompt.

A line is an answer as :func:`fastkd.corpora.logprobs.parsed` reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from fastkd.corpora.logprobs import RENORMALISED, Position, parsed, row_key
from fastkd.files import file_digest


class LogprobFiles:
    """Log-probabilities in files, found by the tokens of a row. Only places in the files are held in memory.

    Args:
        paths: the files.
        progress: whether a bar is shown while they are read.

    Attributes:
        entries: K, the number of log-probabilities that every token has.
        renormalised: whether the K probabilities of every token sum to 1, so that they may not be those over
            the whole vocabulary.

    Raises:
        ValueError: a file that cannot be read or is empty, or a line that does not have the form above. The
            message names the line.
    """

    def __init__(self, paths: Sequence[Path], progress: bool = False) -> None:
        self.paths = list(paths)
        self._places: dict[bytes, tuple[Path, int]] = {}
        entries: float = math.inf
        least = math.inf
        for path in self.paths:
            for offset, where, line in _lines(path, progress):
                ids, positions = _read(line, where)
                self._places.setdefault(row_key(ids), (path, offset))
                entries = min([entries, *(len(one.columns) for one in positions)])
                least = min([least, *(float(np.exp(one.logprobs).sum()) for one in positions)])
        if math.isinf(entries):
            raise ValueError(f"{', '.join(map(str, self.paths))}: no log-probabilities in it")
        self.entries = int(entries)
        self.renormalised = least > 1 - RENORMALISED

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ids: Sequence[int]) -> bool:
        """Whether a line has exactly these tokens."""
        return row_key(ids) in self._places

    def find(self, ids: Sequence[int]) -> list[Position]:
        """The distributions of all tokens but the first, each cut to ``entries``. The row must be there."""
        path, offset = self._places[row_key(ids)]
        with path.open("rb") as file:
            file.seek(offset)
            _, positions = _read(file.readline(), str(path))
        return [one.cut(self.entries) for one in positions]

    def digest(self) -> str:
        """A digest of all files."""
        return hashlib.sha256("".join(map(file_digest, self.paths)).encode()).hexdigest()


def _lines(path: Path, progress: bool) -> Iterator[tuple[int, str, bytes]]:
    """The lines of a file that are not blank: their place in it, their name for messages, and their bytes."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(tqdm(file, f"reading {path}", unit="row", disable=not progress), 1):
                if line.strip():
                    yield offset, f"{path}, line {number}", line
                offset += len(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(line: bytes, where: str) -> tuple[list[int], list[Position]]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    return parsed(given, where)
