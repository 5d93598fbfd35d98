"""One checked call of a loss: its tensors, its settings, and the op that runs it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastkd.backends import memory
from fastkd.losses import reduction as reductions
from fastkd.ops import dense, linear  # noqa: F401  they register the ops
from fastkd.ops.columns import copied_bytes
from fastkd.ops.linear import chunks_of
from fastkd.ops.namespace import OPS
from fastkd.ops.rows import wide
from fastkd.spec import METRICS, LossSpec, names_of, numbers_of


class Inputs(NamedTuple):
    """The tensors of a call; the first :data:`DIFFERENTIABLE` may get a gradient.

    Attributes:
        student: logits ``(..., V)``, or hidden states ``(..., H)`` where ``student_weight`` is set.
        teacher: logits, hidden states where ``teacher_weight`` is set, a sparse teacher's
            log-probabilities, or None.
        indices: a sparse teacher's columns, of the shape of its log-probabilities, or None.
        teacher_columns: ``(V,)`` int64, the teacher's column for each of the student's, or None.
        labels: ``(...)`` int64 or None.
        loss_scale: ``(rows,)``, see :func:`fastkd.losses.reduction.row_scale`.
    """

    student: Tensor
    student_weight: Tensor | None
    student_bias: Tensor | None
    teacher: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    indices: Tensor | None
    teacher_columns: Tensor | None
    labels: Tensor | None
    loss_scale: Tensor


DIFFERENTIABLE = 6
NO_GRADIENT = (False,) * DIFFERENTIABLE


class HeadScales(NamedTuple):
    """The factors and caps on both heads' matrix products, see :func:`fastkd.linear_kd_loss`."""

    student_scale: float = 1.0
    student_softcap: float | None = None
    teacher_scale: float = 1.0
    teacher_softcap: float | None = None

    @property
    def softcaps(self) -> tuple[float | None, float | None]:
        """The student's and the teacher's."""
        return self.student_softcap, self.teacher_softcap


class Results(NamedTuple):
    """``row_loss`` ``(rows,)``, ``metrics`` ``(rows, len(METRICS))``; a gradient is None where not wanted."""

    row_loss: Tensor
    metrics: Tensor | None
    gradients: tuple[Tensor | None, ...]


class Request(NamedTuple):
    """The settings of a call.

    Attributes:
        tail: a sparse teacher's ``tail``.
        per_token: whether the loss is ``(rows,)`` and not their sum.
        metrics: whether the call has metrics.
        row_metrics: whether the metrics are ``(rows, len(METRICS))`` and not their means.
        head_scales: None if neither side has a head and the call has no ``teacher_columns``.
        teacher_rest: whether the teacher's columns that the student lacks form one more class.
    """

    spec: LossSpec
    tail: str | None
    per_token: bool
    metrics: bool
    row_metrics: bool
    head_scales: HeadScales | None
    teacher_rest: bool
    chunk_size: int | None
    group: str | None
    backend: str | None

    def compute(
        self,
        inputs: Inputs,
        wanted: tuple[bool, ...],
        upstream: Tensor | None = None,
        *,
        into_student: Tensor | None = None,
        metrics: bool = True,
    ) -> Results:
        """Run the op.

        Args:
            wanted: which of the differentiable inputs get a gradient.
            upstream: a number or ``(rows,)``, the factor of the gradients; None for 1.
            into_student: memory for the gradient of the student's logits; None to allocate it.
            metrics: False to omit the metrics even if the request has them.
        """
        gradients = [into_student if wanted[0] else None] + [None] * (DIFFERENTIABLE - 1)
        for place, want in enumerate(wanted):
            if want and gradients[place] is None:
                gradients[place] = self._empty(inputs, place)
        row_loss = torch.empty_like(inputs.loss_scale)
        found = row_loss.new_empty(row_loss.shape[0], len(METRICS)) if self.metrics and metrics else None
        source = (inputs.teacher, inputs.indices, self.tail, inputs.labels, inputs.loss_scale, upstream)
        spec = (*names_of(self.spec), *_numbers(self.spec))
        if self.head_scales is None:
            OPS.dense_kd(
                *(inputs.student, *source, *spec, self.group, self.backend),
                *(row_loss, found, gradients[0], gradients[3]),
            )
        else:
            scales, tensors = tuple(self.head_scales), tuple(inputs)
            OPS.linear_kd(
                *(*tensors[:3], *scales[:2], *tensors[4:6], *scales[2:]),
                *(inputs.teacher_columns, self.teacher_rest, *source, *spec),
                *(self.chunk_size, self.group, self.backend, row_loss, found, *gradients),
            )
        return Results(row_loss, found, tuple(gradients))

    def totals(self, inputs: Inputs, results: Results) -> tuple[Tensor, Tensor | None]:
        """The loss and the metrics in the form that the request asks for."""
        row_loss, metrics = results.row_loss, results.metrics
        loss, means = reductions.totals(
            None if self.per_token else row_loss,
            None if self.row_metrics else metrics,
            inputs.loss_scale,
            self.backend,
        )
        return row_loss if loss is None else loss, metrics if self.row_metrics else means

    def _empty(self, inputs: Inputs, place: int) -> Tensor:
        """Memory for the gradient of ``inputs[place]``."""
        x = inputs[place]
        assert x is not None
        dtype = self._gradient_dtype(inputs, place)
        if self.head_scales is None and memory.keeps_gaps(x):
            return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=x.device)
        return memory.empty(x.shape, dtype, x.device)

    def _gradient_dtype(self, inputs: Inputs, place: int) -> torch.dtype:
        """The dtype in which a gradient is stored until the upstream gradient multiplies it.

        The gradient of logits has their dtype. A head's gradients are sums. Those of a float16 head are
        float32 until then, since before the multiplication a sum over tokens may be too large or too small
        for float16. Of a bfloat16 head, those that are summed over several chunks keep the sums' float32.
        """
        x, weight = inputs[place], inputs[1 if place < 3 else 4]
        assert x is not None
        if weight is None or x.dtype not in (torch.float16, torch.bfloat16):
            return x.dtype
        if x.dtype == torch.float16:
            return torch.float32
        if place in (0, 3):
            return x.dtype
        tokens = inputs.loss_scale.shape[0]
        wanted = (place < 3, place >= 3)
        weights = (inputs.student_weight, inputs.teacher_weight)
        assert self.head_scales is not None
        sides = inputs.student, inputs.teacher, inputs.teacher_weight
        chunks = chunks_of(
            *(tokens, self._columns(inputs), *weights, wanted, self.chunk_size, self.group is not None),
            inputs.student.device,
            copied_bytes(*sides, inputs.teacher_columns, self.teacher_rest),
            self.head_scales.softcaps,
        )
        return x.dtype if chunks[place // 3] >= tokens else wide(x)

    def _columns(self, inputs: Inputs) -> int:
        if self.spec.vocab_size >= 0:
            return self.spec.vocab_size
        return (inputs.student if inputs.student_weight is None else inputs.student_weight.t()).shape[-1]


# Larger than any number that a LossSpec holds. No check implies this bound, so torch.compile can decide it
# only for constants.
HUGE = 1e300
# Older torch cannot trace the test whether a number changes, and compiles a graph for each value.
TELLS_CHANGING_NUMBERS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


def _numbers(spec: LossSpec) -> tuple[tuple[float, ...], Tensor | None]:
    """The spec's numbers as an op takes them: floats, or a tensor if torch.compile traces changing ones."""
    numbers = numbers_of(spec)
    if not torch.compiler.is_compiling() or not TELLS_CHANGING_NUMBERS:
        return numbers, None
    if all([statically_known_true(x < HUGE) for x in numbers]):
        return numbers, None
    ones = torch.ones(len(numbers), dtype=torch.float64, device="cpu")
    return (), torch.stack([ones[i] * x for i, x in enumerate(numbers)])
