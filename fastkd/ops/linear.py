"""``fastkd::linear_kd``: heads and loss together, a few rows of logits at a time.

Per chunk of rows: two head GEMMs, the row kernel turning the student's logits into their gradient in
place, two gradient GEMMs. Nothing is computed twice and no ``(tokens, vocab)`` tensor exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.backends.base import Backend
from fastkd.ops.calls import SPEC_SCHEMA, Tokens
from fastkd.ops.dense import LIBRARY, TEACHER_SCHEMA, fake_metrics
from fastkd.ops.rows import as_rows
from fastkd.spec import METRICS, LossSpec

# Large enough that the GEMMs run at full speed, small beside the logits of a training batch.
SCRATCH_BYTES = 384 * 2**20

# Where others wait for each chunk, all must cut alike, and nobody knows the others' widths.
SHARDED_CHUNK = 512

LIBRARY.define(
    "linear_kd(Tensor hidden, Tensor weight, Tensor? bias, float logit_scale, float? logit_softcap, "
    "Tensor? teacher_weight, Tensor? teacher_bias, float teacher_scale, float? teacher_softcap, "
    f"{TEACHER_SCHEMA}, bool[] wanted, bool metrics, int? chunk_size, str? group, str? backend, "
    f"{SPEC_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def default_chunk(tokens: int, bytes_per_token: int) -> int:
    """Rows per chunk: as many as fit the scratch, in chunks of equal size."""
    most = max(64, SCRATCH_BYTES // max(bytes_per_token, 1) // 64 * 64)
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))


class _Head:
    """``softcap(scale * (hidden @ weight.T + bias))`` in chunks, and its gradients."""

    def __init__(
        self,
        runner: Backend,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        vocab: int,
        rows: int,
        wanted: list[bool],
    ) -> None:
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        self.weight = weight[:vocab]
        self.bias = None if bias is None else bias[:vocab]
        self.scale, self.softcap = scale, softcap
        self.runner = runner
        self.logits = runner.empty((rows, vocab), hidden)
        self.by_hidden = torch.empty_like(self.hidden) if wanted[0] else None
        # 16-bit sums over chunks are kept in float32 and rounded once, at the end.
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.by_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None
        self.by_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if wanted[2] else None
        self.single = rows >= self.hidden.shape[0]
        self.wanted = any(wanted)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, vocab)`` of these rows, in memory that the next call reuses."""
        logits = self.logits[: stop - start]
        if self.bias is None:
            torch.mm(self.hidden[start:stop], self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, self.hidden[start:stop], self.weight.t(), out=logits)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits[None]

    def slope(self, logits: Tensor) -> Tensor | None:
        """d capped / d uncapped, taken before the logits are overwritten; None where it is 1."""
        return None if self.softcap is None else 1 - (logits[0] / self.softcap).square()

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        grad = grad[0]
        if slope is not None:
            grad.mul_(slope)
        if self.scale != 1.0:
            grad.mul_(self.scale)
        if self.by_hidden is not None:
            torch.mm(grad, self.weight, out=self.by_hidden[start:stop])
        if self.by_weight is not None:
            into, rows = self.by_weight[: self.weight.shape[0]], self.hidden[start:stop]
            if rows.dtype == into.dtype:
                into.addmm_(grad.t(), rows)
            elif self.single:
                # One chunk is the whole sum: the product itself is its one rounding.
                columns = self.weight.shape[0]
                self.by_weight = self.runner.empty(self.by_weight.shape, self.weight)
                torch.mm(grad.t(), rows, out=self.by_weight[:columns])
                self.by_weight[columns:] = 0
            else:
                # Autocast would recast float16 to its own dtype.
                with torch.autocast(grad.device.type, enabled=False):
                    into.add_(grad.t() @ rows)
        if self.by_bias is not None:
            self.by_bias[: self.weight.shape[0]] += grad.sum(0, dtype=self.by_bias.dtype)

    def gradients(self) -> list[Tensor]:
        """By hidden (flattened), weight and bias in the inputs' dtype; empty where not wanted."""
        found = (self.by_hidden, self.by_weight, self.by_bias)
        return [self.hidden.new_empty(0) if g is None else g.to(self.hidden.dtype) for g in found]


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
    per_token = vocab * (hidden.element_size() + (0 if teacher_weight is None else teacher.element_size()))
    chunk_size = chunk_size or (SHARDED_CHUNK if group else default_chunk(tokens, per_token))
    chunk = min(chunk_size, max(tokens, 1))
    head = _Head(runner, hidden, weight, bias, logit_scale, logit_softcap, vocab, chunk, wanted[:3])

    teacher_head, given, by_given = None, None, teacher.new_empty(0)
    # A teacher that the loss does not read needs no logits either.
    if teacher_weight is not None and spec.kd_weight != 0:
        scales = (teacher_scale, teacher_softcap, vocab, chunk, wanted[3:])
        teacher_head = _Head(runner, teacher, teacher_weight, teacher_bias, *scales)
    elif indices is not None:
        by_given = loss_scale.new_zeros((tokens, teacher.shape[-1]) if wanted[3] else 0)
    elif teacher_weight is None:
        given = as_rows(teacher)
        if wanted[3]:
            by_given = runner.empty(teacher.shape, teacher)

    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
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
