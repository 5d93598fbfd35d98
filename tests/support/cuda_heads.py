"""Predict how long ``linear_kd_loss`` takes on an H100, over its four matrix products alone.

The products, the launches, the bytes of the sums and of torch's operators are those of the real code, which
runs on fake tensors (``device_watch.py``). Their times are a model. None of its assumptions was measured.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from support.device_watch import H100_BYTES, watched
from torch import Tensor

import fastkd

DEVICE = "cuda:1"
# An H100 SXM: multiprocessors, the bandwidth of a copy, and the rate of a product that occupies all of them.
# It is 0.74 of what the tensor cores can do at 1.755 GHz (4,096 operations per clock and multiprocessor).
MULTIPROCESSORS, BANDWIDTH, PRODUCTS = 132, 3.0e12, 700e12
# The results of a product are divided into tiles of this size, either way round, one per multiprocessor at a
# time. The time is that of whole waves of tiles.
TILE = 128, 256
# Seconds from one launch to the next, and the most of a copy's bandwidth that the row kernel reaches.
LAUNCH, BEST_SHARE = 2.5e-6, 0.95


@dataclass(frozen=True)
class Heads:
    """The sizes of a call in bfloat16, and the memory of the GPU."""

    tokens: int
    vocab: int
    student: int = 2048
    teacher: int = 4096
    device_bytes: int = H100_BYTES


DOCUMENTED = [
    *(Heads(8_192, vocab) for vocab in (32_000, 128_256, 151_936, 262_144)),
    *(Heads(tokens, 128_256) for tokens in (2_048, 32_768)),
    *(Heads(8_192, 128_256, width, 2 * width) for width in (1_024, 4_096)),
    Heads(8_192, 128_256, device_bytes=24 * 2**30),
]


@dataclass(frozen=True)
class Seen:
    """A call as its code runs.

    Attributes:
        products: ``(rows, inner, columns)`` of each.
        launches: of kernels other than products, torch's included.
        sums: bytes that the products read and wrote beyond one write of a result in 16 bits.
        moved: bytes that torch's other operators read and wrote.
        extra: the most memory at once, beside inputs and gradients.
    """

    products: list[tuple[int, int, int]]
    launches: int
    sums: int
    moved: int
    extra: int

    def chunks(self, width: int, vocab: int) -> list[int]:
        """The rows of each head product with hidden states of this width."""
        return [rows for rows, inner, columns in self.products if (inner, columns) == (width, vocab)]


def seen(heads: Heads, dtype: torch.dtype = torch.bfloat16, **options: float) -> Seen:
    """Run the call, with its backward, on fake tensors."""
    with watched(DEVICE, device_bytes=heads.device_bytes) as watch:

        def empty(*shape: int, grad: bool = False) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=DEVICE, requires_grad=grad)

        hidden = empty(heads.tokens, heads.student, grad=True)
        weight = empty(heads.vocab, heads.student, grad=True)
        teacher = fastkd.HiddenTeacher(empty(heads.tokens, heads.teacher), empty(heads.vocab, heads.teacher))
        labels = torch.empty(heads.tokens, dtype=torch.int64, device=DEVICE)
        watch.given(hidden, weight, teacher.hidden, teacher.weight, labels)
        watch.seen.made.clear()
        watch.seen.peak = watch.seen.moved = 0
        options = {"kd_ratio": 0.5, "temperature": 2.0, **options}
        loss = fastkd.linear_kd_loss(hidden, weight, teacher, labels, **options)
        assert loss.shape == ()
        watch.backward(torch.empty((), device=DEVICE), None, None)
        found = watch.seen
        extra = found.peak - 2 * (hidden.numel() + weight.numel())
        launches = len(found.launches) + len(found.small)
        return Seen(found.products, launches, found.sums, found.moved, extra)


def product_seconds(rows: int, inner: int, columns: int) -> float:
    """The time of a matrix product, in whole waves of tiles."""
    tiles = min(math.ceil(rows / a) * math.ceil(columns / b) for a, b in (TILE, TILE[::-1]))
    in_waves = math.ceil(tiles / MULTIPROCESSORS) * MULTIPROCESSORS
    return in_waves * 2 * math.prod(TILE) * inner / PRODUCTS


def row_share(document: str, vocab: int) -> float:
    """The share of a copy's bandwidth that ``document`` predicts for the row kernel, at most BEST_SHARE."""
    table = re.search(r"^\| allowed / predicted .*?\n\n", document, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in line.split("|")] for line in table[0].strip().splitlines()]
    row = next(row for row in rows if "forward KL, bfloat16" in row)
    _, predicted = row[rows[0].index(f"V = {vocab:,}")].split(" / ")
    return min(float(predicted), BEST_SHARE)


@dataclass(frozen=True)
class Prediction:
    """Times in units of the four products alone.

    Attributes:
        products: of the products in chunks.
        row_kernel: of the losses and their gradients.
        sums: of the bytes of the weight's sums and of their rounding, and of torch's small operators.
        launches: of the gaps before kernels that the bare products do not have.
    """

    products: float
    row_kernel: float
    sums: float
    launches: float

    @property
    def total(self) -> float:
        return self.products + self.row_kernel + self.sums + self.launches


def predict(heads: Heads, call: Seen, document: str) -> Prediction:
    tokens, vocab = heads.tokens, heads.vocab
    alone = [(tokens, heads.teacher, vocab), (tokens, heads.student, vocab)]
    alone += [(tokens, vocab, heads.student), (vocab, tokens, heads.student)]
    bare = sum(product_seconds(*product) for product in alone)
    more = len(call.products) - len(alone) + call.launches
    # The row kernel reads both sides and writes the gradient, in 16 bits.
    row_kernel = 3 * tokens * vocab * 2 / (BANDWIDTH * row_share(document, vocab))
    return Prediction(
        sum(product_seconds(*product) for product in call.products) / bare,
        row_kernel / bare,
        (call.sums + call.moved) / BANDWIDTH / bare,
        more * LAUNCH / bare,
    )


def line(heads: Heads, call: Seen, found: Prediction) -> str:
    """The row of a call in the table of ``docs/performance.md``."""
    chunks, parts = (call.chunks(width, heads.vocab) for width in (heads.student, heads.teacher))
    counts = f"{len(chunks)}" if len(parts) == len(chunks) else f"{len(chunks)}, teacher {len(parts)}"
    memory = "" if heads.device_bytes == H100_BYTES else f" (GPU of {heads.device_bytes >> 30} GiB)"
    shares = f"{found.products - 1:.3f} | {found.row_kernel:.3f} | {found.sums:.3f} | {found.launches:.3f}"
    return (
        f"| {heads.tokens:,} | {heads.vocab:,} | {heads.student:,}, {heads.teacher:,}{memory} | {counts} "
        f"| {call.extra / 2**20:,.0f} MiB | {shares} | {found.total:.2f} |"
    )


HEADER = (
    "| N | V | H of both | chunks | memory | products | row kernel | sums | launches | predicted |",
    "|---" * 10 + "|",
)
