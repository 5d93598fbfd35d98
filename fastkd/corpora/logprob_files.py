"""Reads a teacher's log-probabilities from JSON lines, as vLLM gives them for the tokens of a prompt.

A line is an object with ``prompt_token_ids`` and ``prompt_logprobs``, at its top (``RequestOutput``) or in
the first of its ``choices`` (completions of the OpenAI-compatible server). ``prompt_logprobs`` has an entry
for each token: null for the first, and for each other an object from token ids to log-probabilities at
temperature 1 over the whole vocabulary, given all tokens before it. A log-probability is a number, or an
object with ``logprob``. Besides the K largest there may be that of the token itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fastkd.files import file_digest

# vLLM writes this, or a lower number, for minus infinity, which JSON does not have.
FLOOR = -9999.0
# By how much probabilities may exceed 1 in sum, as rounding.
_ROUNDING = 1e-3
# How near to 1 every sum is where a server has renormalised the probabilities of its largest logits.
_RENORMALISED = 1e-4


@dataclass(frozen=True)
class Position:
    """The log-probabilities that are known of one token, largest first."""

    columns: np.ndarray
    logprobs: np.ndarray


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
                ids, positions = _parsed(line, where)
                self._places.setdefault(_key(ids), (path, offset))
                entries = min([entries, *(len(one.columns) for one in positions)])
                least = min([least, *(float(np.exp(one.logprobs).sum()) for one in positions)])
        if math.isinf(entries):
            raise ValueError(f"{', '.join(map(str, self.paths))}: no log-probabilities in it")
        self.entries = int(entries)
        self.renormalised = least > 1 - _RENORMALISED

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ids: Sequence[int]) -> bool:
        """Whether a line has exactly these tokens."""
        return _key(ids) in self._places

    def find(self, ids: Sequence[int]) -> list[Position]:
        """The distributions of all tokens but the first, each cut to ``entries``. The row must be there."""
        path, offset = self._places[_key(ids)]
        with path.open("rb") as file:
            file.seek(offset)
            _, positions = _parsed(file.readline(), str(path))
        # The token itself comes on top of the K largest, and is no larger than any of them.
        return [Position(one.columns[: self.entries], one.logprobs[: self.entries]) for one in positions]

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


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, "<i8").tobytes(), digest_size=16).digest()


def _parsed(line: bytes, where: str) -> tuple[list[int], list[Position]]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    ids, logprobs = _found(given, "prompt_token_ids", where), _found(given, "prompt_logprobs", where)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ValueError(f"{where}: prompt_token_ids must be a list of numbers")
    if len(logprobs) != len(ids):
        raise ValueError(f"{where}: {len(ids)} tokens have {len(logprobs)} entries in prompt_logprobs")
    return ids, [_position(one, f"{where}, token {i + 1}") for i, one in enumerate(logprobs[1:], 1)]


def _found(given: Any, name: str, where: str) -> list[Any]:
    choices = given.get("choices") if isinstance(given, dict) else None
    for part in (given, choices[0] if isinstance(choices, list) and choices else None):
        if isinstance(part, dict) and isinstance(part.get(name), list):
            return list(part[name])
    raise ValueError(f"{where} has no list {name}: ask vLLM for prompt_logprobs, and for its token ids")


def _position(given: Any, where: str) -> Position:
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{where} has no log-probabilities")
    found: dict[int, float] = {}
    for name, value in given.items():
        number = value.get("logprob") if isinstance(value, dict) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or math.isnan(number):
            raise ValueError(f"{where}: {number!r} is no log-probability")
        if not str(name).isdigit():
            raise ValueError(f"{where}: {name!r} is no token id")
        found[int(name)] = float(number) if number > FLOOR else -math.inf
    columns = np.fromiter(found, np.int64)
    logprobs = np.fromiter(found.values(), np.float64)
    if (total := float(np.exp(logprobs).sum())) > 1 + _ROUNDING:
        raise ValueError(
            f"{where}: the probabilities sum to {total:.3f}, more than 1: these are not log-probabilities at "
            "temperature 1"
        )
    order = np.argsort(-logprobs, kind="stable")
    return Position(columns[order], logprobs[order])
