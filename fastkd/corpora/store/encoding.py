"""A compact encoding of a few entries of each distribution.

A token's entries are stored in the order of their columns. Columns are grouped into pages of 65,536. For each
token the number of entries in each page is stored, and for each entry the low 16 bits of its column. With
V = 151,936 (3 pages) a token of 32 entries takes 3 + 32 * 2 bytes for its columns.

- ``topk``: log-probabilities at temperature 1 over the whole vocabulary, as float16. Their relative error is
  at most 2**-11, which changes a probability p by at most p * abs(log p) / 2048, that is by less than 0.0002.
  3 + 32 * (2 + 2) = 131 bytes for 32 of 151,936.
- ``sampled``: how often each column was drawn (Anshumann et al. 2025, Sparse Logit Sampling), exact, one
  byte up to 255 draws. Draws are with replacement from the teacher at temperature 1, so count / draws is an
  unbiased estimate of each probability. 3 + 12 * (2 + 1) = 39 bytes for 12 distinct of 151,936.

A row adds 32 bytes: its hash, and the token and entry at which it begins. Measured over 101,190 tokens in
rows of 30, with all files: 132.1 bytes per token for topk 32, 38.2 for sampled 50 (11.4 distinct).

Unbiased is not exact. For a Zipf-like teacher (exponent 1.1, V = 1,000), the angle between the gradient from
50 draws and that from the whole teacher is 25 degrees for one token, 7.5 for the mean of 16, 1.9 for 256 and
0.9 for 1,024. For the gradient from as many top-k entries (32, renormalised) it stays at 6.9 degrees, and
that gradient is 1.55 times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAGE = 2**16
# A row's hash, and the token and entry at which it begins.
ROW_BYTES = 32


@dataclass(frozen=True)
class Entries:
    """A few columns of each of several tokens, stored token after token.

    Attributes:
        pages: ``(tokens, pages)`` uint8 or uint16, number of a token's entries in each page.
        low: ``(entries,)`` uint16, the column within its page.
        values: ``(entries,)`` float16 log-probabilities, or uint8 or uint16 counts.
    """

    pages: np.ndarray
    low: np.ndarray
    values: np.ndarray

    def columns(self) -> np.ndarray:
        """The column of each entry, ``(entries,)`` int64."""
        tokens, pages = self.pages.shape
        page = np.repeat(np.tile(np.arange(pages), tokens), self.pages.ravel())
        return page * PAGE + self.low

    def per_token(self) -> np.ndarray:
        """The number of entries of each token, ``(tokens,)`` int64."""
        return self.pages.sum(1, dtype=np.int64)

    @property
    def bytes(self) -> int:
        """Size on the disk."""
        return self.pages.nbytes + self.low.nbytes + self.values.nbytes


def top(logits: Tensor, count: int) -> Entries:
    """The ``count`` largest log-probabilities of ``(tokens, V)`` logits, or all where ``V`` is less."""
    logprobs = torch.log_softmax(logits.float(), -1)
    columns = logprobs.topk(min(count, logits.shape[-1]), sorted=False).indices.sort(-1).values
    values = logprobs.gather(-1, columns).half()
    each = torch.full((len(logits),), columns.shape[-1])
    return packed(columns.flatten(), values.flatten(), each, logits.shape[-1], count)


def drawn(logits: Tensor, draws: int, generator: torch.Generator) -> Entries:
    """The distinct columns among ``draws`` samples of each of ``(tokens, V)`` logits, with their counts."""
    tokens, width = logits.shape
    # In float64, since in float32 the running sum over a large vocabulary would lose rare columns.
    found = torch.multinomial(logits.double().softmax(-1), draws, replacement=True, generator=generator)
    keys = found + torch.arange(tokens, device=found.device)[:, None] * width
    distinct, counts = torch.unique(keys, return_counts=True)
    each = torch.bincount(distinct // width, minlength=tokens)
    return packed(distinct % width, counts, each, width, draws)


def packed(columns: Tensor, values: Tensor, each: Tensor, width: int, most: int) -> Entries:
    """Encode the entries of some tokens.

    Args:
        columns: ``(entries,)``, which ascend within a token.
        values: ``(entries,)`` float16 log-probabilities, or counts.
        each: ``(tokens,)``, entries per token, at most ``most``.
        width: the teacher's vocabulary.
        most: the largest number that a token's entries or counts can have.
    """
    small = np.uint8 if _small(most) == 1 else np.uint16
    where = columns.cpu().numpy()
    token = np.repeat(np.arange(len(each)), each.cpu().numpy())
    pages = np.zeros((len(each), _pages(width)), small)
    np.add.at(pages, (token, where // PAGE), 1)
    found = values.cpu().numpy()
    return Entries(
        pages,
        (where % PAGE).astype(np.uint16),
        found if found.dtype == np.float16 else found.astype(small),
    )


def bytes_per_token(kind: str, columns: int, top_k: int, samples: int, hidden: int, itemsize: int) -> float:
    """An estimate of a cache's bytes per token that does not need the teacher to run.

    Args:
        kind: ``topk``, ``sampled`` or ``hidden``.
        columns: the teacher's vocabulary.
        top_k, samples: entries of ``topk``, and draws of ``sampled``. A quarter of the draws are assumed to
            be distinct, as is typical of large language models; a teacher that is less sure draws up to
            three quarters.
        hidden, itemsize: width of the teacher's last hidden state, and bytes of each of its elements.
    """
    if kind == "hidden":
        return hidden * itemsize
    if kind == "sampled":
        return sampled_bytes(columns, samples, min(columns, -(-samples // 4)))
    return _pages(columns) * _small(top_k) + min(columns, top_k) * (2 + 2)


def sampled_bytes(columns: int, samples: int, distinct: float) -> float:
    """The bytes per token of a ``sampled`` cache in which a token's draws have so many distinct columns."""
    return _pages(columns) * _small(samples) + distinct * (2 + _small(samples))


def _pages(columns: int) -> int:
    return -(-columns // PAGE)


def _small(most: int) -> int:
    """The bytes of a number up to ``most``."""
    return 1 if most <= 255 else 2
