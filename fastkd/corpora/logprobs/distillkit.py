"""Data sets of DistillKit: tokens, and the compressed log-probabilities of the token after each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastkd.corpora.logprobs.block import Block, checked
from fastkd.corpora.logprobs.compression import (
    APPROXIMATE,
    CONFIG,
    Compression,
    LegacyCompression,
    read_config,
)
from fastkd.corpora.logprobs.position import ROUNDING
from fastkd.corpora.logprobs.tables import Document, TableFiles, numbers, table
from fastkd.corpora.tasks.given_tokens import documents

PACKED = ("compressed_logprobs", "bytepacked_indices")
LEGACY = ("packed_indices", "exact_values", "coeffs")
PLAIN = ("token_ids", "top_values")
# The three forms in which a row has its log-probabilities.
FORMS = (PACKED, LEGACY, PLAIN)


class DistillKitFiles(TableFiles):
    """The layouts of ``distillkit.sample_logits_vllm`` and of the data sets that its authors have published.

    A row has ``input_ids`` and one of ``FORMS``; place i predicts token i + 1, and the last token may have a
    place or none. The ``attention_mask`` of a packed row numbers its documents.

    Args:
        field, paths, rows, progress: as for :class:`TableFiles`.
        longest: tokens from which on rows are cut, as the run's data is.
    """

    def __init__(
        self, field: str, paths: Sequence[Path], rows: Any, longest: int, progress: bool = False
    ) -> None:
        self._form = next(form for form in FORMS if set(form) <= set(rows.column_names))
        self._longest = longest
        self._config = None if self._form == PLAIN else self._settings(paths)
        super().__init__(field, paths, rows, progress)

    def documents(self, row: pa.Table, number: int, where: str) -> Iterator[Document]:
        ids = numbers(row, "input_ids", where).astype(np.int64)
        mask = np.ones(len(ids), np.int64)
        if "attention_mask" in row.column_names:
            mask = numbers(row, "attention_mask", where).astype(np.int64)
        places = len(table(row, self._form[0], where))
        if places not in (len(ids), len(ids) - 1) or len(mask) != len(ids):
            raise ValueError(
                f"{where}: {len(ids)} tokens have {places} places with probabilities and an attention_mask "
                f"of {len(mask)}: there must be a place for each token, or for each but the last"
            )
        block = self._block(row, where)
        for part in documents(mask):
            tokens, last = ids[part].tolist(), min(part.stop - 1, len(block))
            some = slice(part.start, last)
            found = Block(block.columns[some], block.logprobs[some], block.masses[some])
            yield Document(tokens, found, 1, min(len(tokens), self._longest))

    def _block(self, row: pa.Table, where: str) -> Block:
        first, second = (table(row, name, where) for name in self._form[:2])
        rounding = ROUNDING
        if isinstance(self._config, Compression):
            _check_width(first, self._config.token_bytes, "compressed_logprobs", where)
            _check_width(
                second, -(-self._config.k * self._config.index_bits // 8), "bytepacked_indices", where
            )
            values = self._config.logprobs(first.astype(np.uint8))
            columns = self._config.token_ids(second.astype(np.uint8))
            rounding = APPROXIMATE if self._config.approximate else ROUNDING
        elif isinstance(self._config, LegacyCompression):
            _check_width(second, self._config.exact_k, "exact_values", where)
            coefficients = table(row, "coeffs", where)
            if self._config.exact_k < self._config.k:
                _check_width(coefficients, self._config.terms, "coeffs", where)
            values = self._config.logprobs(second, coefficients)
            columns = self._config.token_ids(first.astype(np.uint64))
            rounding = APPROXIMATE
        else:
            columns, values = first, second
            rounding = ROUNDING if values.dtype.itemsize > 2 else APPROXIMATE
        if columns.shape != values.shape:
            raise ValueError(
                f"{where}: token ids and log-probabilities have the shapes {columns.shape} and {values.shape}"
            )
        return checked(columns, values, where, 2, rounding)

    def _settings(self, paths: Sequence[Path]) -> Compression | LegacyCompression:
        folders = list(dict.fromkeys(path.parent for path in paths))
        # A data set's files may be in a folder of their own, with the settings beside it.
        found = [read_config(_nearest(folder)) for folder in folders]
        if any(one != found[0] for one in found):
            raise ValueError(
                f"the {CONFIG} of {folders[0]} and of the other directories differ: read them apart"
            )
        if isinstance(found[0], LegacyCompression) != (self._form == LEGACY):
            raise ValueError(
                f"{folders[0] / CONFIG} describes another compression than that of the columns "
                f"{', '.join(self._form)}"
            )
        return found[0]


def _nearest(folder: Path) -> Path:
    return folder.parent if not (folder / CONFIG).exists() and (folder.parent / CONFIG).exists() else folder


def _check_width(given: np.ndarray, expected: int, name: str, where: str) -> None:
    if given.shape[1] != expected:
        raise ValueError(
            f"{where}: {name} has {given.shape[1]} numbers for each token, and {CONFIG} describes {expected}"
        )
