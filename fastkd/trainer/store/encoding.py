"""Few bytes for a few entries of a distribution.

A token's entries are stored in the order of their columns. Columns are grouped into pages of 65,536: a token
has the number of its entries in each page, and each entry the low 16 bits of its column. With V = 151,936 (3
pages) a token of 32 entries takes 3 + 32 * 2 bytes for its columns.

- ``topk``: log-probabilities at temperature 1 over the whole vocabulary, as float16. Their relative error is
  at most 2**-11, which moves a probability p by at most p * abs(log p) / 2048, that is by less than 0.0002.
  3 + 32 * (2 + 2) = 131 bytes for 32 of 151,936.
- ``sampled``: how often each column was drawn (Anshumann et al. 2025, Sparse Logit Sampling), exact, one
  byte up to 255 draws. Draws are with replacement from the teacher at temperature 1, so count / draws is an
  unbiased estimate of each probability. 3 + 12 * (2 + 1) = 39 bytes for 12 distinct of 151,936.

A row adds 32 bytes: its hash, and where it begins. Measured over 101,190 tokens in rows of 30, all files:
132.1 bytes per token for topk 32, 38.2 for sampled 50 (11.4 distinct).

Unbiased is not exact: of a Zipf-like teacher (exponent 1.1, V = 1,000) the gradient from 50 draws is at 25
degrees to the whole teacher's for one token, 7.5 for the mean of 16, 1.9 for 256 and 0.9 for 1,024.
That of as many top-k entries (32, renormalised) stays at 6.9 degrees and 1.55 times the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAGE = 2**16


@dataclass(frozen=True)
class Entries:
    """Some columns of each of some tokens, one token's after another's.

    Attributes:
        pages: ``(tokens, pages)`` uint8 or uint16, how many of a token's entries lie in each page.
        low: ``(entries,)`` uint16, the column within its page.
        values: ``(entries,)`` float16 log-probabilities, or uint8 or uint16 counts.
    """

    pages: np.ndarray
    low: np.ndarray
    values: np.ndarray

    def columns(self) -> np.ndarray:
        """``(entries,)`` int64."""
        tokens, pages = self.pages.shape
        page = np.repeat(np.tile(np.arange(pages), tokens), self.pages.ravel())
        return page * PAGE + self.low

    def per_token(self) -> np.ndarray:
        """``(tokens,)`` int64, the number of entries."""
        return self.pages.sum(1, dtype=np.int64)


def top(logits: Tensor, count: int) -> Entries:
    """The ``count`` largest log-probabilities of ``(tokens, V)`` logits, or all where ``V`` is less."""
    logprobs = torch.log_softmax(logits.float(), -1)
    columns = logprobs.topk(min(count, logits.shape[-1]), sorted=False).indices.sort(-1).values
    values = logprobs.gather(-1, columns).half()
    each = torch.full((len(logits),), columns.shape[-1])
    return _packed(columns.flatten(), values.flatten(), each, logits.shape[-1], count)


def drawn(logits: Tensor, draws: int, generator: torch.Generator) -> Entries:
    """The distinct columns among ``draws`` samples of each of ``(tokens, V)`` logits, with their counts."""
    tokens, width = logits.shape
    # In double precision: the running sum over a large vocabulary would swallow rare columns.
    found = torch.multinomial(logits.double().softmax(-1), draws, replacement=True, generator=generator)
    keys = found + torch.arange(tokens, device=found.device)[:, None] * width
    distinct, counts = torch.unique(keys, return_counts=True)
    each = torch.bincount(distinct // width, minlength=tokens)
    return _packed(distinct % width, counts, each, width, draws)


def _packed(columns: Tensor, values: Tensor, each: Tensor, width: int, most: int) -> Entries:
    """``each``: entries per token, at most ``most``; ``columns`` rise within a token."""
    small = np.uint8 if most <= 255 else np.uint16
    where = columns.cpu().numpy()
    token = np.repeat(np.arange(len(each)), each.cpu().numpy())
    pages = np.zeros((len(each), -(-width // PAGE)), small)
    np.add.at(pages, (token, where // PAGE), 1)
    found = values.cpu().numpy()
    return Entries(
        pages,
        (where % PAGE).astype(np.uint16),
        found if found.dtype == np.float16 else found.astype(small),
    )


def bytes_per_token(kind: str, columns: int, top_k: int, samples: int, hidden: int, itemsize: int) -> float:
    """About what a cache takes for each token, before anything is known of the teacher.

    Args:
        kind: ``topk``, ``sampled`` or ``hidden``.
        columns: the teacher's vocabulary.
        top_k, samples: of ``topk`` and ``sampled``; of the latter's draws a quarter are taken to be distinct,
            as is typical of language models.
        hidden, itemsize: width and bytes of the teacher's last hidden state.
    """
    pages = -(-columns // PAGE)
    if kind == "hidden":
        return hidden * itemsize
    entries = min(columns, top_k if kind == "topk" else -(-samples // 4))
    most = top_k if kind == "topk" else samples
    small = 1 if most <= 255 else 2
    return pages * small + entries * (2 + (2 if kind == "topk" else small))
