"""Files of rows and columns: parquet, or JSON lines without vLLM's keys. `datasets` maps them into memory."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from fastkd.corpora.logprobs.block import Block
from fastkd.corpora.logprobs.position import Position
from fastkd.corpora.logprobs.source import LogprobFiles, Place

# Tokens from which on it is judged whether the log-probabilities are those of the tokens beside them.
_JUDGED = 100
# Tokens after which no more are looked at for it.
_ENOUGH = 50_000
# A mean probability of the tokens beside, and its ratio to that of the tokens, from which on it is said.
_BESIDE, _TIMES = 0.1, 2.0

_EMPTY = Position(np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class Document:
    """The tokens of a row, or of one document of a packed row, and what is known of them.

    Attributes:
        ids: all tokens.
        block: the distributions of tokens ``begin`` and on, counted from 0, as far as they are known.
        begin: at least 1.
        kept: the number of tokens to train on, from the first one on; None leaves the document out.
    """

    ids: list[int]
    block: Block
    begin: int
    kept: int | None


class TableFiles(LogprobFiles):
    """Rows of a data set, each with one document or several.

    Args:
        field: the setting that names the files, for messages.
        paths: the files.
        rows: the rows in them.
        progress: whether a bar is shown while they are read.

    Raises:
        ValueError: a row that does not have the form of its layout, or log-probabilities that are those of
            other tokens. The message names the row.
    """

    def __init__(self, field: str, paths: Sequence[Path], rows: Any, progress: bool = False) -> None:
        super().__init__(paths)
        self._field, self._rows = field, rows.with_format("arrow")
        self._ends = _ends(self.paths)
        beside, tokens = np.zeros(3), 0
        for number in tqdm(range(len(rows)), f"reading {field}", unit="row", disable=not progress):
            for part, one in enumerate(self._read(number)):
                self.entries = max(self.entries, one.block.columns.shape[1])
                if tokens < _ENOUGH:
                    sums, count = _probabilities(one)
                    beside, tokens = beside + sums, tokens + count
                if one.kept is not None:
                    place = Place((number, part), self._where(number), one.begin)
                    least = float(one.block.masses.min(initial=np.inf))
                    self.add(one.ids[: one.kept], place, one.block.largest(), least)
        if not self._places:
            raise ValueError(f"{', '.join(map(str, self.paths))}: no log-probabilities in it")
        self._check_alignment(beside, tokens)

    def find(self, ids: Sequence[int]) -> list[Position]:
        place = self.place(ids)
        assert place is not None
        number, part = place.at
        found = [_EMPTY] * (place.begin - 1) + list(self._read(number))[part].block.positions()
        return found[: len(ids) - 1]

    @abstractmethod
    def documents(self, row: pa.Table, number: int, where: str) -> Iterator[Document]:
        """The documents of a row.

        Args:
            row: a table of one row.
            number: its number.
            where: names it in messages.
        """

    def _read(self, number: int) -> Iterator[Document]:
        return self.documents(self._rows[number : number + 1], number, self._where(number))

    def _where(self, number: int) -> str:
        if not self._ends:
            return f"{self._field}, row {number + 1}"
        file = bisect_right(self._ends, number)
        before = int(self._ends[file - 1]) if file else 0
        return f"{self._field}: {str(self.paths[file])!r}, row {number - before + 1}"

    def _check_alignment(self, sums: np.ndarray, tokens: int) -> None:
        """Refuse log-probabilities that fit the token before or after theirs much better."""
        before, own, after = (sums / max(tokens, 1)).tolist()
        best, side = max((before, "before"), (after, "after"))
        if tokens >= _JUDGED and best > _BESIDE and best > _TIMES * own:
            raise ValueError(
                f"{self._field}: the log-probabilities give the tokens a probability of {own:.2f} in the "
                f"mean, and the tokens one place {side} them {best:.2f}: they belong to other tokens, as of "
                "another chat template or tokenizer than the one they were made with"
            )


def _ends(paths: Sequence[Path]) -> list[float]:
    """The numbers of rows up to the end of each file; empty if they are not known without reading them."""
    if len(paths) == 1:
        return [float("inf")]
    if any(path.suffix != ".parquet" for path in paths):
        return []
    return list(accumulate(float(pq.read_metadata(path).num_rows) for path in paths))


def _probabilities(one: Document) -> tuple[np.ndarray, int]:
    """The sums of the probabilities of the tokens before, at and after those that are predicted, and the
    number of tokens that have all three.
    """
    ids = np.asarray(one.ids)
    first, last = one.begin, min(one.begin + len(one.block), len(ids) - 1)
    count = max(0, last - first)
    some = Block(one.block.columns[:count], one.block.logprobs[:count], one.block.masses[:count])
    sums = [some.probability(ids[first + by : first + by + count]).sum() for by in (-1, 0, 1)]
    return np.array(sums), count


def numbers(row: pa.Table, name: str, where: str) -> np.ndarray:
    """A list of numbers, ``(length,)``."""
    found = _array(row, name)
    if not _is_list(found.type) or not _is_number(found.type.value_type) or found.null_count:
        raise ValueError(f"{where}: {name} must be a list of numbers")
    return np.asarray(found.flatten().to_numpy(zero_copy_only=False))


def lists(row: pa.Table, name: str, where: str) -> tuple[pa.Array, np.ndarray]:
    """The values in a list of lists, and the length of each inner list, of which null ones count as empty."""
    found = _array(row, name)
    if found.null_count or not (_is_list(found.type) and _is_list(found.type.value_type)):
        raise ValueError(f"{where}: {name} must be a list of lists")
    inner = found.flatten()
    return inner.flatten(), pc.fill_null(pc.list_value_length(inner), 0).to_numpy(zero_copy_only=False)


def table(row: pa.Table, name: str, where: str) -> np.ndarray:
    """A list of lists of equally many numbers, ``(lists, length)``.

    Raises:
        ValueError: lists of different lengths, or other values.
    """
    values, sizes = lists(row, name, where)
    if len(values) and (not _is_number(values.type) or values.null_count):
        raise ValueError(f"{where}: {name} must hold numbers")
    if len(set(sizes.tolist())) > 1:
        wrong = int((sizes != sizes[0]).argmax())
        raise ValueError(
            f"{where}: {name} has {sizes[0]} numbers at its first place and {sizes[wrong]} at another"
        )
    width = int(sizes[0]) if len(sizes) else 0
    if not width:
        return np.empty((len(sizes), 0))
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(sizes), width)


def filled(values: np.ndarray, sizes: np.ndarray, fill: float) -> np.ndarray:
    """Lists of different lengths as ``(lists, longest)``, with ``fill`` behind each."""
    made = np.full((len(sizes), int(sizes.max(initial=0))), fill, values.dtype)
    made[np.arange(made.shape[1]) < sizes[:, None]] = values
    return made


def _array(row: pa.Table, name: str) -> Any:
    found = row[name].combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
