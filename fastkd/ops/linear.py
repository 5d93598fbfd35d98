"""``fastkd::linear_kd``: heads and loss together, a few rows of logits at a time.

Per chunk of rows: two head GEMMs, the row kernel turning the student's logits into their gradient in
place, two gradient GEMMs. Nothing is computed twice and no ``(tokens, vocab)`` tensor exists. The teacher's
head may take a chunk in parts, since its logits are of no use after the row kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.ops.calls import SPEC_SCHEMA, Tokens
from fastkd.ops.dense import LIBRARY, TEACHER_SCHEMA, fake_metrics
from fastkd.ops.head import Head, row_pitch
from fastkd.ops.rows import as_rows, wide
from fastkd.spec import METRICS, LossSpec

# Large enough that the GEMMs run at full speed, small beside the logits of a training batch.
SCRATCH_BYTES = 384 * 2**20

# On a GPU each chunk costs a sweep through the weight's float32 sums (8 bytes per element of the weight) and
# through the heads, so there are few. Rows come in whole tiles of its GEMMs.
GPU_SCRATCH_BYTES = 2**30
GPU_TILE = 128

# Where others wait for each chunk, all must cut alike, and nobody knows the others' widths.
SHARDED_CHUNK, GPU_SHARDED_CHUNK = 512, 2048

LIBRARY.define(
    "linear_kd(Tensor hidden, Tensor weight, Tensor? bias, float logit_scale, float? logit_softcap, "
    "Tensor? teacher_weight, Tensor? teacher_bias, float teacher_scale, float? teacher_softcap, "
    f"{TEACHER_SCHEMA}, bool[] wanted, bool metrics, int? chunk_size, str? group, str? backend, "
    f"{SPEC_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class Chunks(NamedTuple):
    """Rows of logits that are alive at once: the student's, and those of a teacher's head."""

    student: int
    teacher: int


def default_chunks(
    tokens: int, student_bytes: int, teacher_bytes: int, device_type: str, sums: int = 0
) -> Chunks:
    """As many rows as fit the scratch, in chunks of equal size.

    Args:
        student_bytes, teacher_bytes: of a row of logits; 0 where there is no such head.
        sums: bytes of the float32 sums of weights' gradients beyond those of the gradients. One chunk needs
            no sums, so on a GPU its logits may take their memory.
    """
    tokens, both = max(tokens, 1), max(student_bytes + teacher_bytes, 1)
    if device_type == "cpu":
        rows = equal_parts(tokens, max(64, SCRATCH_BYTES // both // 64 * 64))
        return Chunks(rows, rows)
    if tokens * both <= GPU_SCRATCH_BYTES:
        return Chunks(tokens, tokens)
    part = min(tokens, _whole_tiles(GPU_SCRATCH_BYTES // 4, teacher_bytes))
    left = GPU_SCRATCH_BYTES - part * teacher_bytes
    if tokens * student_bytes <= left + sums:
        return Chunks(tokens, part)
    rows = equal_parts(tokens, _whole_tiles(left, student_bytes), GPU_TILE)
    return Chunks(rows, min(rows, part))


def equal_parts(rows: int, most: int, tile: int = 1) -> int:
    """The size of parts of ``rows``: as few as can be of at most ``most``, alike but for whole tiles."""
    count = -(-rows // most)
    return min(rows, -(-rows // (count * tile)) * tile)


def _whole_tiles(size: int, bytes_per_row: int) -> int:
    """Rows in ``size`` bytes."""
    return max(GPU_TILE, size // max(bytes_per_row, 1) // GPU_TILE * GPU_TILE)


def _given(teacher: Tensor) -> Tensor:
    """Logits as ``(outer, inner, V)``, ``outer`` being 1 wherever strides allow."""
    return teacher.view(1, -1, teacher.shape[-1]) if teacher.is_contiguous() else as_rows(teacher)


def _teacher_rows(teacher: Tensor, start: int, stop: int) -> Tensor:
    """Rows of ``(outer, inner, V)`` logits as ``(1, n, V)``, without a copy where one slice holds them."""
    inner = teacher.shape[1]
    if teacher.shape[0] == 1:
        return teacher[:, start:stop]
    index = torch.arange(start, stop, device=teacher.device)
    return teacher[index // inner, index % inner][None]


def _linear_kd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    logit_softcap: float | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    wanted: list[bool],
    metrics: bool,
    chunk_size: int | None,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, ...]:
    spec = LossSpec(*arithmetic)  # type: ignore[arg-type]
    tokens_of = Tokens(labels, indices, teacher, tail, loss_scale, grad_scale, weight.shape[0], spec, group)
    spec = tokens_of.spec
    runner = registry.choose(
        backend, hidden.device, hidden.dtype, teacher.dtype if indices is None else loss_scale.dtype
    )
    tokens, vocab = loss_scale.numel(), spec.vocab_size
    row_loss = torch.empty_like(loss_scale)
    found = loss_scale.new_empty((tokens, len(METRICS)) if metrics else 0)
    on = hidden.device.type
    if chunk_size is not None:
        chunks = Chunks(chunk_size, chunk_size)
    elif group:
        chunks = Chunks(*[SHARDED_CHUNK if on == "cpu" else GPU_SHARDED_CHUNK] * 2)
    else:
        weights = (weight if wanted[1] else None, teacher_weight if wanted[4] else None)
        chunks = default_chunks(
            tokens,
            row_pitch(vocab, hidden) * hidden.element_size(),
            0 if teacher_weight is None else row_pitch(vocab, teacher) * teacher.element_size(),
            on,
            sum(w.numel() * (wide(w).itemsize - w.element_size()) for w in weights if w is not None),
        )
    chunk, part = (min(rows, max(tokens, 1)) for rows in chunks)
    head = Head(runner, hidden, weight, bias, logit_scale, logit_softcap, vocab, chunk, wanted[:3])

    teacher_head, given, by_given = None, None, teacher.new_empty(0)
    # A teacher that the loss does not read needs no logits either.
    if teacher_weight is not None and spec.kd_weight != 0:
        scales = (teacher_scale, teacher_softcap, vocab, part, wanted[3:])
        teacher_head = Head(runner, teacher, teacher_weight, teacher_bias, *scales)
    elif indices is not None:
        by_given = loss_scale.new_zeros((tokens, teacher.shape[-1]) if wanted[3] else 0)
    elif teacher_weight is None:
        given = _given(teacher)
        if wanted[3]:
            by_given = runner.empty(teacher.shape, teacher)

    def loss_of(start: int, stop: int, s: Tensor) -> None:
        """Losses of these rows; their student's logits become the gradient where it is wanted."""
        t, slope, into = None, None, None
        if teacher_head is not None:
            t = teacher_head.forward(start, stop)
            if teacher_head.wanted:
                slope, into = teacher_head.slope(t), t
        elif given is not None:
            t = _teacher_rows(given, start, stop)
            if wanted[3]:
                into = by_given.view(1, tokens, -1)[:, start:stop]
        elif indices is not None and wanted[3]:
            into = by_given[start:stop]
        into_student = s if head.wanted else None
        shown = found if metrics else None
        runner.rows(tokens_of.call(start, stop, s, t, row_loss, into_student, into, shown))
        if teacher_head is not None and teacher_head.wanted and t is not None:
            teacher_head.backward(start, stop, t, slope)

    def one_chunk(start: int, stop: int) -> None:
        s = head.forward(start, stop)
        slope = head.slope(s) if head.wanted else None
        step = stop - start
        if teacher_head is not None:
            step = equal_parts(step, part, 1 if on == "cpu" else GPU_TILE)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            loss_of(first, last, s[:, first - start : last - start])
        if head.wanted:
            head.backward(start, stop, s, slope)

    for start in range(0, tokens, chunk):
        one_chunk(start, min(start + chunk, tokens))
    head.release()
    if teacher_head is not None:
        teacher_head.release()

    if teacher_head is not None:
        by_teacher = teacher_head.gradients()
    elif teacher_weight is None:
        by_teacher = [by_given.to(teacher.dtype), teacher.new_empty(0), teacher.new_empty(0)]
        if wanted[3]:
            by_teacher[0] = by_teacher[0].view(teacher.shape)
    else:
        inputs = (teacher.reshape(-1, teacher.shape[-1]), teacher_weight, teacher_bias)
        by_teacher = [
            torch.zeros_like(x) if x is not None and want else teacher.new_empty(0)
            for x, want in zip(inputs, wanted[3:], strict=True)
        ]
    return (row_loss, *head.gradients(), *by_teacher, found)


def _linear_kd_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    logit_softcap: float | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    wanted: list[bool],
    metrics: bool,
    chunk_size: int | None,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, ...]:
    def gradient(x: Tensor | None, want: bool, like: Tensor, flat: bool) -> Tensor:
        if x is None or not want:
            return like.new_empty(0)
        shape = (loss_scale.numel(), x.shape[-1]) if flat else x.shape
        return torch.empty(shape, dtype=x.dtype, device=x.device)

    return (
        torch.empty_like(loss_scale),
        gradient(hidden, wanted[0], hidden, True),
        gradient(weight, wanted[1], hidden, False),
        gradient(bias, wanted[2], hidden, False),
        gradient(teacher, wanted[3], teacher, teacher_weight is not None),
        gradient(teacher_weight, wanted[4], teacher, False),
        gradient(teacher_bias, wanted[5], teacher, False),
        fake_metrics(loss_scale, metrics),
    )


for key in ("CPU", "CUDA", "XPU", "MPS"):
    LIBRARY.impl("linear_kd", _linear_kd, key)
torch.library.register_fake("fastkd::linear_kd", _linear_kd_fake, lib=LIBRARY)
