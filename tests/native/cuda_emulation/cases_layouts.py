"""Cases of the CUDA kernels by themselves: dtypes, alignments, strides, and which kernel runs a row.

``test_cuda_emulation.py`` runs them on the emulated kernels.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from support.kernel_calls import DTYPES, KERNEL, Named, call_of, compare, logits, named, spec

from fastkd.backends.native import forced_cuda_kernel


@pytest.mark.parametrize("student, teacher", list(itertools.product(DTYPES, DTYPES)), ids=str)
@named
@pytest.mark.parametrize("in_place", [False, True])
def test_dtypes_alignments_and_padding(
    student: torch.dtype, teacher: torch.dtype, divergence: Named, in_place: bool
) -> None:
    for columns, offsets in ((1, (0, 0)), (9, (3, 3)), (130, (1, 5)), (1001, (0, 0)), (1000, (2, 2))):
        if columns == 1 and divergence[0] == "decoupled":
            continue  # there is no column besides the label
        s = logits(3, columns, student, offsets[0])
        t = logits(3, columns + 8, teacher, offsets[1])
        s[..., columns - columns // 10 :] = float("nan")  # padding
        t[..., columns - columns // 10 :] = float("nan")
        vocab = columns - columns // 10
        labels = torch.tensor([0, vocab - 1, vocab // 2])
        compare(s, t, labels, spec(vocab, divergence), in_place, metrics=columns == 1000)


# The kernel, the blocks of a cluster, and the rows that it takes: as many as it chooses, or all four.
KERNELS = [("stream", None, None), ("cluster", 1, 4), ("cluster", 2, None), ("cluster", 16, 4)]


# There are more blocks than groups of columns, a whole number of stages, and rows that do not divide evenly.
@named
@pytest.mark.parametrize("kernel, blocks, rows", KERNELS)
def test_kernels(divergence: Named, kernel: str, blocks: int | None, rows: int | None) -> None:
    for (columns, offset), dtype in itertools.product(((5, 1), (1003, 3), (6144, 0)), DTYPES):
        s, t = logits(4, columns + 2, dtype, offset), logits(4, columns + 10, dtype, offset)
        s[..., columns:] = t[..., columns:] = float("nan")  # padding
        s[0, 2], t[0, 2] = float("nan"), float("inf")  # ignored
        labels = torch.tensor([0, columns - 1, -100, columns // 2])
        with forced_cuda_kernel(kernel, blocks, rows):
            compare(s, t, labels, spec(columns, divergence), in_place=dtype == torch.bfloat16)


@named
@pytest.mark.parametrize("kernel, blocks, rows", KERNELS)
def test_two_dtypes_and_metrics(divergence: Named, kernel: str, blocks: int | None, rows: int | None) -> None:
    for (columns, offset), student, teacher in itertools.product(((5, 1), (1003, 3)), DTYPES, DTYPES):
        s, t = logits(4, columns + 2, student, offset), logits(4, columns + 10, teacher, offset)
        s[..., columns:] = t[..., columns:] = float("nan")  # padding
        labels = torch.tensor([0, columns - 1, -100, columns // 2])
        for metrics in (True, False) if student != teacher else (True,):
            with forced_cuda_kernel(kernel, blocks, rows):
                compare(s, t, labels, spec(columns, divergence), metrics=metrics)


def test_rows_that_do_not_fit_a_cluster() -> None:
    """The cluster kernel refuses sides whose 16-byte boundaries differ, strided columns, and more columns
    than 16 blocks hold; if it is not forced, another kernel runs such calls."""
    wide = logits(1, 500_000, torch.float32)
    calls = [
        (logits(2, 50, torch.float32), logits(2, 50, torch.float32, 1)),
        (logits(2, 50, torch.bfloat16), logits(2, 51, torch.bfloat16)),
        (logits(2, 50, torch.bfloat16), logits(2, 50, torch.float32, 1)),
        (torch.randn(50, 3, 2).permute(2, 1, 0), logits(6, 50, torch.float32).view(2, 3, 50)),
        (wide, wide.flip(2)),
    ]
    for s, t in calls:
        labels = torch.zeros(s.shape[0] * s.shape[1], dtype=torch.int64)
        call = call_of(s, t, labels, spec(min(s.shape[2], t.shape[2])))
        with forced_cuda_kernel("cluster"), pytest.raises(RuntimeError):
            KERNEL.rows(call)
        compare(s, t, labels, call.spec)


@named
def test_full_blocks(divergence: Named) -> None:
    s, t = logits(1, 20_003, torch.bfloat16), logits(1, 20_003, torch.bfloat16)
    compare(s, t, torch.tensor([17_000]), spec(20_003, divergence, temperature=1.0, teacher_temperature=1.5))


@named
def test_strides(divergence: Named) -> None:
    s = torch.randn(77, 3, 2).permute(2, 1, 0) * 3  # neighbouring columns are 6 elements apart
    t = torch.randn(2, 4, 90)[:, :-1]
    compare(s, t, torch.randint(0, 70, (6,)), spec(70, divergence))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_rows(dtype: torch.dtype) -> None:
    for rows, columns, offset in ((3, 1, 0), (2, 777, 1), (2, 20_001, 0)):
        grad = logits(rows, columns, dtype, offset)
        for factor in (torch.tensor([1.0, -0.3, 2.5])[:rows], torch.tensor(-0.3).expand(rows)):
            expected = (grad.float() * factor[:, None]).to(dtype)
            out = torch.full_like(grad, 7.0)
            KERNEL.scale_rows(grad, factor, out)
            assert out.equal(expected)
            given = grad.clone()
            KERNEL.scale_rows(given, factor, given)
            assert given.equal(expected)
        given = grad.clone()
        KERNEL.scale_rows(given, torch.tensor(1.0).expand(rows), given)
        assert given.equal(grad)


def test_scale_rows_with_gaps() -> None:
    whole = logits(12, 777, torch.bfloat16).view(3, 4, 777)
    given, factor = whole[:, :-1], torch.rand(9)
    expected, last = (given.float() * factor.view(3, 3, 1)).bfloat16(), whole[:, -1].clone()
    out = torch.full((3, 3, 777), 7.0, dtype=torch.bfloat16)
    KERNEL.scale_rows(given, factor, out)
    assert out.equal(expected)
    KERNEL.scale_rows(given, factor, given)
    assert given.equal(expected) and whole[:, -1].equal(last)
