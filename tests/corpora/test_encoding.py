"""Test the encoding of entries: packing keeps columns, rounding is small, and draws are unbiased."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastkd import SparseTeacher, kd_loss
from fastkd.corpora.store.encoding import drawn, top


def test_sampling_is_unbiased_and_top_k_is_not() -> None:
    """The mean gradient over many sampled caches converges to the whole teacher's; top-k's keeps its bias.

    For one token of a Zipf-like teacher, compare 50 draws with as many top columns as the draws have distinct
    ones.
    """
    torch.manual_seed(0)
    teacher = -1.1 * torch.arange(1, 1001).log()[None]
    student = torch.randn(1, 1000, requires_grad=True)

    def gradient(given: Any) -> torch.Tensor:
        return torch.autograd.grad(kd_loss(student, given), student)[0].flatten()

    def angle(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.degrees(math.acos(min(1.0, float(torch.cosine_similarity(a, b, dim=0)))))

    whole = gradient(teacher)
    draws = torch.Generator().manual_seed(1)
    total, errors, kept, last = torch.zeros_like(whole), {}, 0, 512
    for n in range(1, last + 1):
        entries = drawn(teacher, 50, draws)
        kept += len(entries.low)
        logprobs = torch.from_numpy(np.log(entries.values / 50)).float()[None]
        total += gradient(SparseTeacher(torch.from_numpy(entries.columns())[None], logprobs, "drop"))
        errors[n] = float((total / n - whole).norm() / whole.norm())
    # Since it is unbiased, 64 times as many draws give an eighth of the error.
    assert errors[last] < errors[8] / 5 and errors[last] < 0.04
    best = top(teacher, round(kept / last))
    logprobs = torch.from_numpy(best.values).float()[None]
    largest = gradient(SparseTeacher(torch.from_numpy(best.columns())[None], logprobs))
    assert angle(total, whole) < 2 < angle(largest, whole)


def test_rounding_of_log_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 3000) * 6
    entries = top(logits, 40)
    exact = logits.double().log_softmax(-1)
    columns = torch.from_numpy(entries.columns()).view(20, 40)
    assert (columns.diff(dim=1) > 0).all()
    assert torch.equal(columns, logits.topk(40).indices.sort(1).values)
    read = torch.from_numpy(entries.values).double().view(20, 40)
    assert (read.exp() - exact.gather(1, columns).exp()).abs().max() < 2e-4


@pytest.mark.parametrize("vocab", [300, 65_536, 65_537, 262_144])
@pytest.mark.parametrize("count", [5, 300])
def test_columns_survive_packing(vocab: int, count: int) -> None:
    """Packing keeps the columns at page borders, with a single page, and with more than 255 entries."""
    logits = torch.randn(3, vocab)
    for column in (0, vocab - 1, min(vocab - 1, 65_535), min(vocab - 1, 65_536)):
        logits[:, column] = 10 + column / vocab
    found = torch.from_numpy(top(logits, count).columns()).view(3, -1)
    assert torch.equal(found, logits.topk(count).indices.sort(1).values)
    entries = drawn(logits, count, torch.Generator().manual_seed(0))
    assert entries.values.sum() == 3 * count and entries.columns().max() < vocab
    assert entries.per_token().sum() == len(entries.low) == len(entries.values)
