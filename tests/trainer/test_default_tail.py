"""Test that a cache of a flat teacher, read with the default tail and K, teaches and does no harm."""

from __future__ import annotations

import pytest
import torch
from support.stored import settings
from torch import Tensor

from fastkd import SparseTeacher, kd_loss

VOCAB, CONTEXTS, LABELS = 500, 4, 1000


def stored(logits: Tensor, tail: str) -> SparseTeacher:
    return SparseTeacher.from_logits(logits, settings().cache_top_k, tail=tail)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_gradient_is_nearer_to_the_whole_teachers(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 64, VOCAB, generator=generator).mul(0.5)

    def gradient(given: Tensor | SparseTeacher) -> Tensor:
        leaf = student.clone().requires_grad_()
        kd_loss(leaf, given, kd_ratio=1.0, temperature=temperature).backward()
        assert leaf.grad is not None
        return leaf.grad

    whole = gradient(teacher)
    away = {
        tail: float((gradient(stored(teacher, tail)) - whole).norm())
        for tail in (settings().cache_tail, "renormalize")
    }
    assert away["bucket"] < 0.75 * away["renormalize"]


def test_a_flat_teacher_does_no_harm() -> None:
    """A table of logits per context learns from labels drawn from the teacher. With the default cache
    it ends nearer to the true distributions than without a teacher, with `renormalize` farther away."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(CONTEXTS, VOCAB, generator=generator)
    labels = torch.multinomial(truth.softmax(-1), LABELS, replacement=True, generator=generator).flatten()
    rows = torch.arange(CONTEXTS).repeat_interleave(LABELS)

    def cross_entropy(tail: str | None) -> float:
        table = torch.zeros(CONTEXTS, VOCAB, requires_grad=True)
        optimizer = torch.optim.Adam([table], 0.1)
        given = None if tail is None else stored(truth[rows], tail)
        for _ in range(60):
            optimizer.zero_grad()
            kd_loss(table[rows], given, labels, kd_ratio=0.0 if tail is None else 0.5).backward()
            optimizer.step()
        return float(-(truth.softmax(-1) * table.detach().log_softmax(-1)).sum(-1).mean())

    alone, default, other = (cross_entropy(tail) for tail in (None, settings().cache_tail, "renormalize"))
    assert default < alone < other
