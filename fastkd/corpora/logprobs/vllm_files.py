"""Reads a teacher's log-probabilities from JSON lines, as vLLM gives them for the tokens of a prompt.

A line is an answer as :func:`fastkd.corpora.logprobs.vllm.parsed` reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from fastkd.corpora.logprobs.position import Position
from fastkd.corpora.logprobs.source import LogprobFiles, Place
from fastkd.corpora.logprobs.vllm import parsed


class VllmFiles(LogprobFiles):
    """JSON lines of vLLM. Each token has the K largest log-probabilities that every token has.

    Args:
        paths: the files.
        progress: whether a bar is shown while they are read.

    Raises:
        ValueError: a file that cannot be read or is empty, or a line that does not have the form above. The
            message names the line.
    """

    def __init__(self, paths: Sequence[Path], progress: bool = False) -> None:
        super().__init__(paths)
        entries: float = math.inf
        for path in self.paths:
            for offset, where, line in _lines(path, progress):
                ids, positions = _read(line, where)
                entries = min([entries, *(len(one.columns) for one in positions)])
                self.add(
                    ids,
                    Place((path, offset), where),
                    max((int(one.columns.max()) for one in positions), default=-1),
                    min((float(np.exp(one.logprobs).sum()) for one in positions), default=math.inf),
                )
        if math.isinf(entries):
            raise ValueError(f"{', '.join(map(str, self.paths))}: no log-probabilities in it")
        self.entries = int(entries)

    def find(self, ids: Sequence[int]) -> list[Position]:
        place = self.place(ids)
        assert place is not None
        path, offset = place.at
        with path.open("rb") as file:
            file.seek(offset)
            _, positions = _read(file.readline(), place.where)
        return [one.cut(self.entries) for one in positions]


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
