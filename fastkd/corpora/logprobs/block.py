"""The distributions of all tokens of a row, as one table that is checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastkd.corpora.logprobs.position import ROUNDING, Position, too_much


@dataclass(frozen=True)
class Block:
    """The distributions of consecutive tokens.

    Attributes:
        columns: ``(tokens, K)`` int64, token ids; anything where the log-probability is ``-inf``.
        logprobs: ``(tokens, K)`` float64; ``-inf`` where there is no entry.
        masses: ``(tokens,)`` float64, the sums of the probabilities.
    """

    columns: np.ndarray
    logprobs: np.ndarray
    masses: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    def positions(self) -> list[Position]:
        """Each token's entries."""
        there = np.isfinite(self.logprobs).sum(1).tolist()
        return [
            Position(columns[:count], logprobs[:count])
            for columns, logprobs, count in zip(self.columns, self.logprobs, there, strict=True)
        ]

    def largest(self) -> int:
        """The largest token id; -1 without any."""
        return int(self.columns[np.isfinite(self.logprobs)].max(initial=-1))

    def probability(self, tokens: np.ndarray) -> np.ndarray:
        """The probability of one token at each place, ``(tokens,)``; 0 where it has no entry."""
        hit = (self.columns == tokens[:, None]) & np.isfinite(self.logprobs)
        return np.where(hit, np.exp(self.logprobs), 0.0).sum(1)


def checked(
    columns: np.ndarray, logprobs: np.ndarray, where: str, first: int, rounding: float = ROUNDING
) -> Block:
    """A block of what a file has, with each token's entries in the order of their size.

    Args:
        columns, logprobs: as in :class:`Block`, in any order and of any type.
        where: names the row in messages.
        first: the number of the first token of the block in its row, counted from 1.
        rounding: by how much probabilities may exceed 1 in sum. Where they do, they are divided by their sum.

    Raises:
        ValueError: NaN, a token without any entry, a token id that is negative or there twice, or
            probabilities that sum to more than 1. The message names the token.
    """
    values = np.asarray(logprobs, np.float64)

    def refuse(wrong: Any, sentence: str) -> None:
        if wrong.any():
            raise ValueError(f"{where}, token {first + int(wrong.argmax())}: {sentence}")

    refuse(np.isnan(values).any(1), "NaN is no log-probability")
    there = values > -np.inf
    refuse(~there.any(1), "there is no log-probability")
    ids = np.where(there, np.asarray(columns).astype(np.int64), -1)
    refuse(((ids < 0) & there).any(1), "a token id is negative")
    ordered = np.sort(ids, 1)
    refuse(((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] >= 0)).any(1), "a token id is there twice")
    with np.errstate(over="ignore"):
        masses = np.exp(values).sum(1)
    wrong = masses > 1 + rounding
    refuse(wrong, too_much(float(masses[wrong.argmax()])) if len(masses) else "")
    over = masses > 1
    values = np.where(over[:, None], values - np.log(np.where(over, masses, 1.0))[:, None], values)
    order = np.argsort(-values, 1, kind="stable")
    return Block(
        np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1), np.minimum(masses, 1.0)
    )
