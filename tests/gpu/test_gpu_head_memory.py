"""Test how ``linear_kd_loss`` divides a large head's logits into chunks, without a GPU.

``support/device_watch.py`` explains how.
"""

from __future__ import annotations

import pytest
import torch
from support.device_watch import watched
from torch import Tensor

import fastkd
from fastkd.ops.linear import GPU_SCRATCH_BYTES, GPU_TILE, Chunks, default_chunks

DEVICE = "cuda:1"
# The size at which docs/performance.md gives measurements of a head on an H100.
BIG_TOKENS, BIG_VOCAB = 8192, 128_256


@pytest.mark.parametrize("widths", [(2048, 4096), (1024, 2048)])
def test_memory_of_a_large_head(widths: tuple[int, int]) -> None:
    with watched(DEVICE) as watch:

        def empty(*shape: int, grad: bool = False) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=grad)

        h, w = empty(BIG_TOKENS, widths[0], grad=True), empty(BIG_VOCAB, widths[0], grad=True)
        teacher = fastkd.HiddenTeacher(empty(BIG_TOKENS, widths[1]), empty(BIG_VOCAB, widths[1]))
        labels = torch.empty(BIG_TOKENS, dtype=torch.int64, device=DEVICE)
        watch.given(h, w, teacher.hidden, teacher.weight, labels)
        watch.seen.made.clear()
        watch.seen.peak = watch.seen.moved = 0
        loss = fastkd.linear_kd_loss(h, w, teacher, labels, kd_ratio=0.5, temperature=2.0)
        watch.backward(torch.empty((), device=DEVICE), None, None)
        assert loss.shape == ()
        gradients = 2 * (h.numel() + w.numel())
        # Before torch 2.11 each product for the weight's sums is a separate tensor, in bfloat16.
        apart = torch.__version__ < (2, 11)
        extra = watch.seen.peak - gradients - (2 * w.numel() if apart else 0)
        assert 0 < extra < 1.5 * 2**30, f"{extra / 2**20:.0f} MiB beside the gradients"
        # The student's logits come in three chunks of whole tiles, and the teacher's in parts of each chunk.
        made = [(inner, rows) for rows, inner, columns in watch.seen.products if columns == BIG_VOCAB]
        assert [rows for inner, rows in made if inner == widths[0]] == [2816, 2816, 2560]
        parts = [rows for inner, rows in made if inner == widths[1]]
        assert parts == 2 * [1024, 1024, 768] + [896, 896, 768]
        flops = sum(2 * a * b * c for a, b, c in watch.seen.products)
        assert flops == 2 * BIG_TOKENS * BIG_VOCAB * (3 * widths[0] + widths[1]), "a product more than four"
        # Besides the products, torch's operators move the weight's sums, which are rounded to gradients, the
        # hidden states, which are masked for ignored tokens, and per-token scalars. A separate product has to
        # be added to the sums, which moves 10 bytes for each element and chunk.
        assert watch.seen.moved < (6 + 3 * 10 * apart) * w.numel() + 4 * h.numel() + 2**25


def test_one_chunk_if_it_needs_no_more_memory() -> None:
    row, sums = 2 * BIG_VOCAB, 2 * 2048 * BIG_VOCAB

    def taken(chunks: Chunks) -> int:
        return row * sum(chunks)

    for tokens in (1, 100, 2048, 4096):
        chunks = default_chunks(tokens, row, row, "cuda", sums)
        assert chunks.student == tokens and (chunks.teacher == tokens) == (tokens <= 2048)
        assert taken(chunks) <= GPU_SCRATCH_BYTES + sums
    for tokens in (BIG_TOKENS, 10_000, 100_000):
        chunk, part = chunks = default_chunks(tokens, row, row, "cuda", sums)
        assert chunk % GPU_TILE == 0 and part % GPU_TILE == 0 and taken(chunks) <= GPU_SCRATCH_BYTES
        # Chunks are of nearly equal size: the last is shorter by less than a tile per chunk.
        count = -(-tokens // chunk)
        assert count * chunk - tokens < GPU_TILE * count
    assert default_chunks(BIG_TOKENS, 2**30, 2**30, "cuda") == (GPU_TILE, GPU_TILE)  # for any width
    assert default_chunks(0, row, row, "cuda") == (1, 1)
    # Without a teacher's head the student's chunk may use all of the memory.
    assert default_chunks(4000, row, 0, "cuda").student == 4000
