"""``fastkd::linear_kd``: heads and loss together, a few rows of logits at a time.

Per chunk of rows: two head GEMMs, the row kernel turning the student's logits into their gradient in
place, two gradient GEMMs. Nothing is computed twice and no ``(tokens, vocab)`` tensor exists.
"""

from __future__ import annotations

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

# A GPU reads all of each head for every chunk, and all of the float32 sums of their gradients: few chunks, of
# whole tiles of its GEMMs.
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


def default_chunk(tokens: int, bytes_per_token: int, device_type: str = "cpu", sums: int = 0) -> int:
    """Rows per chunk: as many as fit the scratch, in chunks of equal size.

    One chunk needs no float32 sums of the weights' gradients. ``sums`` says how many bytes those take beyond
    the gradients; on a GPU the one chunk's logits may take them instead.
    """
    tokens, size = max(tokens, 1), max(bytes_per_token, 1)
    if device_type == "cpu":
        most = max(64, SCRATCH_BYTES // size // 64 * 64)
        return -(-tokens // -(-tokens // most))
    if tokens * size <= GPU_SCRATCH_BYTES + sums:
        return tokens
    most = max(GPU_TILE, GPU_SCRATCH_BYTES // size // GPU_TILE * GPU_TILE)
    equal = -(-tokens // -(-tokens // most))
    return min(tokens, -(-equal // GPU_TILE) * GPU_TILE)


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
    heads = ((hidden, weight, wanted[1]), (teacher, teacher_weight, wanted[4]))
    per_token = sum(row_pitch(vocab, h) * h.element_size() for h, w, _ in heads if w is not None)
    sums = sum(
        w.numel() * (wide(w).itemsize - w.element_size()) for _, w, want in heads if w is not None and want
    )
    if chunk_size is None:
        sharded = SHARDED_CHUNK if on == "cpu" else GPU_SHARDED_CHUNK
        chunk_size = sharded if group else default_chunk(tokens, per_token, on, sums)
    chunk = min(chunk_size, max(tokens, 1))
    head = Head(runner, hidden, weight, bias, logit_scale, logit_softcap, vocab, chunk, wanted[:3])

    teacher_head, given, by_given = None, None, teacher.new_empty(0)
    # A teacher that the loss does not read needs no logits either.
    if teacher_weight is not None and spec.kd_weight != 0:
        scales = (teacher_scale, teacher_softcap, vocab, chunk, wanted[3:])
        teacher_head = Head(runner, teacher, teacher_weight, teacher_bias, *scales)
    elif indices is not None:
        by_given = loss_scale.new_zeros((tokens, teacher.shape[-1]) if wanted[3] else 0)
    elif teacher_weight is None:
        given = _given(teacher)
        if wanted[3]:
            by_given = runner.empty(teacher.shape, teacher)

    def one_chunk(start: int, stop: int) -> None:
        s = head.forward(start, stop)
        slope = head.slope(s) if head.wanted else None
        t, teacher_slope, into = None, None, None
        if teacher_head is not None:
            t = teacher_head.forward(start, stop)
            if teacher_head.wanted:
                teacher_slope, into = teacher_head.slope(t), t
        elif given is not None:
            t = _teacher_rows(given, start, stop)
            if wanted[3]:
                into = by_given.view(1, tokens, -1)[:, start:stop]
        elif indices is not None and wanted[3]:
            into = by_given[start:stop]
        into_student = s if head.wanted else None
        shown = found if metrics else None
        runner.rows(tokens_of.call(start, stop, s, t, row_loss, into_student, into, shown))
        if head.wanted:
            head.backward(start, stop, s, slope)
        if teacher_head is not None and teacher_head.wanted and t is not None:
            teacher_head.backward(start, stop, t, teacher_slope)

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
