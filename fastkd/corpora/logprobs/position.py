"""The log-probabilities that are known of one token, and the key of a row of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How near to 1 every sum is where a server has renormalised the probabilities of its largest logits.
RENORMALISED = 1e-4
# By how much probabilities may exceed 1 in sum, as rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Position:
    """The log-probabilities that are known of one token, largest first."""

    columns: np.ndarray
    logprobs: np.ndarray

    def cut(self, most: int) -> Position:
        """The largest of them. The token itself may come on top of the K largest, and is no larger."""
        return Position(self.columns[:most], self.logprobs[:most])


def row_key(ids: Sequence[int]) -> bytes:
    """A digest of a row's tokens, by which its log-probabilities are found."""
    return hashlib.blake2b(np.asarray(ids, "<i8").tobytes(), digest_size=16).digest()


def too_much(total: float) -> str:
    """The sentence, without its subject, on probabilities that sum to more than 1."""
    return (
        f"the probabilities sum to {total:.3f}, more than 1: these are not log-probabilities at temperature 1"
    )
