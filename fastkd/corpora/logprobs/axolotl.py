"""Data sets of axolotl's ``kd`` plugin: conversations, and the log-probabilities of their last tokens.

The source is ``src/axolotl/integrations/kd/chat_template.py`` of https://github.com/axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastkd.corpora.logprobs.block import checked
from fastkd.corpora.logprobs.tables import Document, TableFiles, filled, lists, numbers

IDS = "target_token_ids"
_MARK = "token_id:"

# By the number of a row: its tokens, uncut, and how many of them the run keeps (None if it leaves out the
# beginning); None for a row that the run leaves out.
Encoder = Callable[[int], tuple[list[int], int | None] | None]


class AxolotlFiles(TableFiles):
    """Rows with a list for each of their last tokens: the list's last entry is that of the row's last token.

    The first layout has ``{"token": "token_id:N", "logprob": x}`` for each entry, as vLLM answers chats with
    ``return_tokens_as_token_ids``; the second has ``target_token_ids``, and beside it lists of as many
    log-probabilities. Tokens without an entry, as those of the prompt, come before the others.

    Args:
        field, paths, rows, progress: as for :class:`TableFiles`.
        column: the column of the log-probabilities.
        encode: makes tokens of a row's text; it is not called for rows with ``input_ids``.
        longest: tokens from which on rows with ``input_ids`` are cut.
    """

    def __init__(
        self,
        field: str,
        paths: Sequence[Path],
        rows: Any,
        column: str,
        encode: Encoder,
        longest: int,
        progress: bool = False,
    ) -> None:
        self._column, self._encode, self._longest = column, encode, longest
        super().__init__(field, paths, rows, progress)

    def documents(self, row: pa.Table, number: int, where: str) -> Iterator[Document]:
        if "input_ids" in row.column_names:
            ids = numbers(row, "input_ids", where).astype(np.int64).tolist()
            kept: int | None = min(len(ids), self._longest)
        else:
            try:
                encoded = self._encode(number)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{where}: {error}") from error
            if encoded is None:
                return
            ids, kept = encoded
        columns, values = self._entries(row, where)
        if len(columns) > len(ids):
            raise ValueError(
                f"{where}: there are log-probabilities of {len(columns)} tokens, and the row has {len(ids)}: "
                "the chat template or the tokenizer is another one than when the file was made"
            )
        known = np.isfinite(values).any(1)
        unknown = int(known.argmax()) if known.any() else len(known)
        # No token comes before the first one, so that nothing predicts it.
        unknown = max(unknown, 1 - (len(ids) - len(columns)))
        begin = len(ids) - len(columns) + unknown
        yield Document(ids, checked(columns[unknown:], values[unknown:], where, begin + 1), begin, kept)

    def _entries(self, row: pa.Table, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and log-probabilities, ``(tokens, K)``, with ``-inf`` where there is no entry."""
        found, sizes = lists(row, self._column, where)
        if pa.types.is_struct(found.type):
            ids, values = _ids(found.field("token"), where), _floats(found.field("logprob"))
        else:
            given, counts = lists(row, IDS, where)
            if not np.array_equal(counts, sizes):
                raise ValueError(f"{where}: {IDS} and {self._column} differ in the number of their entries")
            ids, values = given.to_numpy(zero_copy_only=False), _floats(found)
        return filled(ids.astype(np.int64), sizes, -1), filled(values, sizes, -np.inf)


def _floats(values: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(values, pa.float64()), np.nan).to_numpy(zero_copy_only=False))


def _ids(names: pa.Array, where: str) -> np.ndarray:
    if pa.types.is_integer(names.type):
        return np.asarray(names.to_numpy(zero_copy_only=False))
    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(names, rf"^{_MARK}\d+$"), False))
    if pc.any(wrong).as_py():
        example = names.filter(wrong)[0].as_py()
        raise ValueError(
            f"{where}: the token {example!r} is not written as {_MARK}N: ask vLLM for "
            "return_tokens_as_token_ids"
        )
    return np.asarray(
        pc.cast(pc.utf8_slice_codeunits(names, len(_MARK)), pa.int64()).to_numpy(zero_copy_only=False)
    )
