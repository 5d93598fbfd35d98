"""``fastkd::linear_kd``: heads and loss together, a few rows of logits at a time.

Each chunk of rows needs two head GEMMs, the row kernel, which turns the student's logits into their gradient
in place, and two gradient GEMMs. Nothing is computed twice and no ``(tokens, vocab)`` tensor exists. The
teacher's head may process a chunk in parts, since nothing needs its logits after the row kernel. Either side
may have logits instead of a head. With ``teacher_columns`` the student's vocabulary is part of the teacher's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends import memory, registry
from fastkd.ops.columns import SelectedColumns, WithoutRest, check_columns, copied_bytes
from fastkd.ops.dense import DEVICES, TEACHER_SCHEMA, no_results
from fastkd.ops.given import GivenLogits, Logits
from fastkd.ops.head import Head, row_bytes
from fastkd.ops.namespace import LIBRARY, NAMESPACE
from fastkd.ops.rows import wide
from fastkd.ops.tokens import Tokens
from fastkd.spec import METRICS, SPEC_SCHEMA, spec_of

# Each chunk reads both heads once more, and reads and writes the sums of the weight's gradient, so the GEMMs
# run at full speed only in large chunks. On a CPU each head product also packs its head anew, which takes as
# long as several hundred rows. The logits take this much memory, of which the student's, used by three GEMMs,
# get STUDENT_SHARE; or each side's take as much as the larger head, which needs as much for its gradient.
SCRATCH_BYTES = 512 * 2**20
STUDENT_SHARE = 2 / 3
CPU_TILE = 64

AGREEMENT = METRICS.index("agreement")

# On a GPU the sums of a chunk of GPU_ROWS rows take about 2 % of the time of its products, so larger chunks
# are not worth their memory. They get 1 / GPU_SHARE of the device's memory, and at least GPU_SCRATCH_BYTES.
# The teacher's head, whose products need no sums, takes 1 / GPU_PARTS of a chunk at a time. Chunks and parts
# consist of whole tiles of the GPU's GEMMs.
GPU_ROWS = 8192
GPU_SHARE = 16
GPU_SCRATCH_BYTES = 2**30
GPU_PARTS = 4
GPU_TILE = 128

# With a group, all processes must use the same chunks without knowing each other's widths: a fixed size.
SHARDED_CHUNK, GPU_SHARDED_CHUNK = 512, 2048

# As in dense_kd, but the gradients may be wider than their inputs.
LIBRARY.define(
    "linear_kd(Tensor student, Tensor? student_weight, Tensor? student_bias, float student_scale, "
    "float? student_softcap, Tensor? teacher_weight, Tensor? teacher_bias, float teacher_scale, "
    "float? teacher_softcap, Tensor? teacher_columns, bool teacher_rest, "
    f"{TEACHER_SCHEMA}, {SPEC_SCHEMA}, SymInt? chunk_size, str? group, str? backend, "
    "Tensor(a!) row_loss, Tensor(b!)? metrics, Tensor(c!)? grad_student, Tensor(d!)? grad_student_weight, "
    "Tensor(e!)? grad_student_bias, Tensor(f!)? grad_teacher, Tensor(g!)? grad_teacher_weight, "
    "Tensor(h!)? grad_teacher_bias) -> ()"
)


class Chunks(NamedTuple):
    """How many rows of logits are held at once: the student's, and those of a teacher's head."""

    student: int
    teacher: int


def default_chunks(
    tokens: int,
    student_bytes: int,
    teacher_bytes: int,
    device_type: str,
    sums: int = 0,
    weight_bytes: int = 0,
    device_bytes: int = 0,
) -> Chunks:
    """As many rows as fit the scratch memory, in chunks of equal size.

    Args:
        student_bytes, teacher_bytes: bytes per row of logits; 0 without that head.
        sums: bytes that the float32 sums of the weights' gradients need beyond the gradients themselves. A
            single chunk needs no sums, so its logits may use that memory.
        weight_bytes: bytes of the larger head.
        device_bytes: the GPU's memory; 0 if it is not known.
    """
    tokens, both = max(tokens, 1), max(student_bytes + teacher_bytes, 1)
    if device_type == "cpu":
        scratch = max(SCRATCH_BYTES, 2 * weight_bytes)
        if tokens * both <= scratch:
            return Chunks(tokens, tokens)
        two = student_bytes > 0 and teacher_bytes > 0
        most = max(int(STUDENT_SHARE * SCRATCH_BYTES), scratch // 2) if two else scratch
        each = student_bytes if two else both
        rows = tokens
        if tokens * each > most + sums:
            rows = equal_parts(tokens, _whole_tiles(most, each, CPU_TILE))
        if not two:
            return Chunks(rows, rows)
        left = max(scratch - rows * student_bytes + (sums if rows == tokens else 0), scratch - most)
        return Chunks(rows, equal_parts(rows, _whole_tiles(left, teacher_bytes, CPU_TILE)))
    if tokens * both <= GPU_SCRATCH_BYTES:
        return Chunks(tokens, tokens)
    # A row of the student's logits, with the teacher's for as many rows as there are at once.
    pair = max(student_bytes + teacher_bytes // GPU_PARTS, 1)
    scratch = max(GPU_SCRATCH_BYTES, min(device_bytes // GPU_SHARE, GPU_ROWS * pair))
    rows = _whole_tiles(scratch, pair)
    if tokens * student_bytes <= rows * student_bytes + sums:
        rows = tokens
    rows = equal_parts(tokens, rows, GPU_TILE)
    return Chunks(rows, equal_parts(rows, _whole_tiles(scratch // GPU_PARTS, pair), GPU_TILE))


def equal_parts(rows: int, most: int, tile: int = 1) -> int:
    """The size of parts of ``rows``: as few as possible of at most ``most`` rows, equal up to a tile."""
    count = -(-rows // most)
    return min(rows, -(-rows // (count * tile)) * tile)


def _whole_tiles(size: int, bytes_per_row: int, tile: int = GPU_TILE) -> int:
    """Rows that fit in ``size`` bytes, in whole tiles and at least one."""
    return max(tile, size // max(bytes_per_row, 1) // tile * tile)


def chunks_of(
    tokens: int,
    vocab: int,
    student_weight: Tensor | None,
    teacher_weight: Tensor | None,
    wanted: tuple[bool, bool],
    chunk_size: int | None,
    sharded: bool,
    device: torch.device,
    copied: tuple[int, int] = (0, 0),
    softcaps: tuple[float | None, float | None] = (None, None),
) -> Chunks:
    """How many rows of a call the heads process at once.

    Args:
        student_weight, teacher_weight: None where the logits are given.
        wanted: whether the gradients of these weights are wanted.
        chunk_size: the user's choice, or None.
        device: where the call runs.
        copied: bytes per row that :mod:`fastkd.ops.columns` adds to the logits of either side.
        softcaps: of both heads.
    """
    if chunk_size is not None:
        chunks = Chunks(chunk_size, chunk_size)
    elif sharded:
        chunks = Chunks(*[SHARDED_CHUNK if device.type == "cpu" else GPU_SHARDED_CHUNK] * 2)
    else:
        sums = 0
        for x, want in zip((student_weight, teacher_weight), wanted, strict=True):
            if x is not None and want:
                sums += x.numel() * (wide(x).itemsize - x.element_size())
        selects = teacher_weight is not None and copied[1] > 0
        of_student = row_bytes(student_weight, vocab, softcaps[0]) + copied[0]
        columns = teacher_weight.shape[0] if selects else vocab  # type: ignore[union-attr]
        of_teacher = row_bytes(teacher_weight, columns, softcaps[1] if wanted[1] else None) + copied[1]
        heads = [0 if x is None else x.numel() * x.element_size() for x in (student_weight, teacher_weight)]
        sizes = of_student, of_teacher, device.type, sums, max(heads), memory.device_bytes(device)
        chunks = default_chunks(tokens, *sizes)
    return Chunks(*(min(rows, max(tokens, 1)) for rows in chunks))


def _linear_kd(
    student: Tensor,
    student_weight: Tensor | None,
    student_bias: Tensor | None,
    student_scale: float,
    student_softcap: float | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    teacher_columns: Tensor | None,
    teacher_rest: bool,
    teacher: Tensor | None,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    upstream: Tensor | None,
    divergence: str,
    ignore_index: int,
    vocab_size: int,
    numbers: list[float],
    changing: Tensor | None,
    chunk_size: int | None,
    group: str | None,
    backend: str | None,
    row_loss: Tensor,
    metrics: Tensor | None,
    grad_student: Tensor | None,
    grad_student_weight: Tensor | None,
    grad_student_bias: Tensor | None,
    grad_teacher: Tensor | None,
    grad_teacher_weight: Tensor | None,
    grad_teacher_bias: Tensor | None,
) -> None:
    spec = spec_of((divergence, ignore_index, vocab_size), numbers, changing)
    columns = student.shape[-1] if student_weight is None else student_weight.shape[0]
    runner = registry.choose(
        backend,
        student.device,
        student.dtype,
        loss_scale.dtype if teacher is None or indices is not None else teacher.dtype,
    )
    tokens_of = Tokens(labels, indices, teacher, tail, loss_scale, upstream, columns, spec, group, runner)
    spec, read = tokens_of.spec, tokens_of.read
    tokens, vocab = loss_scale.numel(), spec.vocab_size
    wanted = grad_student_weight is not None, grad_teacher_weight is not None
    copied = copied_bytes(student, teacher, teacher_weight, teacher_columns, teacher_rest)
    weights, softcaps = (student_weight, teacher_weight), (student_softcap, teacher_softcap)
    chunk, part = chunks_of(
        *(tokens, vocab, *weights, wanted, chunk_size, group is not None),
        *(student.device, copied, softcaps),
    )
    if teacher_columns is not None:
        check_columns(teacher_columns, teacher, teacher_weight)

    student_side: Logits
    teacher_side: Logits | None = None
    if student_weight is None:
        student_side = GivenLogits(student, grad_student)
    else:
        head = (student, student_weight, student_bias, student_scale, student_softcap, vocab, chunk, read)
        student_side = Head(*head, (grad_student, grad_student_weight, grad_student_bias))
    by_logprobs = None  # a sparse teacher's gradient, in the dtype of the arithmetic
    if indices is not None or teacher is None:
        if grad_teacher is not None:
            by_logprobs = loss_scale.new_zeros(tokens, grad_teacher.shape[-1])
    elif teacher_weight is None:
        teacher_side = GivenLogits(teacher, grad_teacher)
    elif spec.kd_weight != 0 or metrics is not None:
        existing = vocab if teacher_columns is None else teacher_weight.shape[0]
        head = (teacher, teacher_weight, teacher_bias, teacher_scale, teacher_softcap, existing, part, read)
        teacher_side = Head(*head, (grad_teacher, grad_teacher_weight, grad_teacher_bias))
    else:
        # A teacher that is not read needs no logits.
        for grad in (grad_teacher, grad_teacher_weight, grad_teacher_bias):
            if grad is not None:
                grad.zero_()

    selected = None
    if teacher_columns is not None and teacher_side is not None:
        temperature = spec.teacher_temperature if teacher_rest else None
        teacher_side = selected = SelectedColumns(teacher_side, teacher_columns[:vocab], temperature)
        if teacher_rest:
            student_side = WithoutRest(student_side, vocab)
            tokens_of.spec = spec._replace(vocab_size=vocab + 1)

    def loss_of(start: int, stop: int, s: Tensor, by_student: Tensor | None) -> None:
        """Compute the losses of these rows, and the gradients of both sides' logits if they are wanted."""
        t = slope = by_teacher = None
        if teacher_side is not None:
            t, by_teacher = teacher_side.forward(start, stop), teacher_side.gradient(start, stop)
            slope = teacher_side.slope(t) if teacher_side.wanted else None
        elif by_logprobs is not None:
            by_teacher = by_logprobs[start:stop]
        agrees = None
        if selected is not None and teacher_rest and metrics is not None:
            agrees = selected.agreement(s) & read[start:stop]
        runner.rows(tokens_of.call(start, stop, s, t, row_loss, by_student, by_teacher, metrics))
        if agrees is not None and metrics is not None:
            metrics[start:stop, AGREEMENT] = agrees.to(metrics.dtype)
        if teacher_side is not None and by_teacher is not None:
            teacher_side.backward(start, stop, by_teacher, slope)

    for side in (student_side, teacher_side):
        if side is not None:
            side.announce(runner)
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        s, by_student = student_side.forward(start, stop), student_side.gradient(start, stop)
        slope = student_side.slope(s) if student_side.wanted else None
        step = stop - start
        if part < chunk:
            step = equal_parts(step, part, 1 if student.device.type == "cpu" else GPU_TILE)
        for first in range(start, stop, step):
            rows = slice(first - start, min(first + step, stop) - start)
            into = None if by_student is None else by_student[:, rows]
            loss_of(first, min(first + step, stop), s[:, rows], into)
        if by_student is not None:
            student_side.backward(start, stop, by_student, slope)
        del slope  # before the next chunk's is made

    for side in (student_side, teacher_side):
        if side is not None:
            side.finish()
    if grad_teacher is not None and by_logprobs is not None:
        grad_teacher.view(by_logprobs.shape).copy_(by_logprobs)


def _linear_kd_without_autocast(student: Tensor, *arguments: object) -> None:
    # The caller has already cast the heads as autocast requires; the results must not be cast again.
    with torch.autocast(student.device.type, enabled=False):
        _linear_kd(student, *arguments)  # type: ignore[arg-type]


for key in DEVICES:
    LIBRARY.impl("linear_kd", _linear_kd_without_autocast, key)
torch.library.register_fake(f"{NAMESPACE}::linear_kd", no_results, lib=LIBRARY)
