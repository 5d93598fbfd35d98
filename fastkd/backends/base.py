"""The interface of a backend, and the calls that it computes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends.shards import Shards
from fastkd.spec import METRICS, LossSpec


@dataclass
class SparseRows:
    """A teacher given by ``K`` columns per row, checked and flattened.

    Args:
        indices: ``(rows, K)`` int64, columns of this process's shard; a column of another shard is outside
            ``[0, vocab)``. Absent entries have log-probability -inf and any index.
        logprobs: ``(rows, K)`` of the dtype of the arithmetic.
        tail: ``"renormalize"``, ``"bucket"`` or ``"drop"``, see :class:`fastkd.SparseTeacher`.
        class_temperature: for ``bucket``, whose classes are formed at temperature 1 (that of the call's
            spec): on the student's side their logarithms are then divided by this temperature and normalised
            again.
        grad: receives the gradient of ``logprobs``, of its shape and dtype; or None.
        most_mass: the largest sum of a row's probabilities that is accepted, see
            :meth:`Backend.takes_sparse`; infinite where it does not matter or was checked before.
    """

    indices: Tensor
    logprobs: Tensor
    tail: str
    class_temperature: float = 1.0
    grad: Tensor | None = None
    most_mass: float = math.inf


@dataclass
class Call:
    """The rows of one call, and memory for its results. All tensors are already checked.

    Args:
        student: ``(outer, inner, columns)``, any strides; columns at or beyond ``spec.vocab_size`` are not
            read.
        teacher: logits of the same rows, :class:`SparseRows`, or None where ``spec.kd_weight`` is 0.
        labels: ``(outer * inner,)`` int64, contiguous, or None. Rows labelled ``spec.ignore_index`` are not
            read; a label outside the vocabulary makes its row NaN (with ``shards`` it belongs to another
            shard).
        loss_scale, grad_scale: ``(outer * inner,)`` float32, or float64 if an input is float64. A row in
            which both are 0 is not read.
        row_loss: receives ``loss_scale * L``, in the dtype of ``loss_scale``.
        upstream: ``(outer * inner,)`` of that dtype, any stride: a factor of ``grad_scale`` where that is not
            0; None for ones. Only a backend with :attr:`Backend.takes_upstream` gets one.
        grad_student, grad_teacher: receive ``grad_scale * dL/dlogits``, and 0 beyond the vocabulary, in the
            shape and dtype of their logits; or None. May share the logits' memory, with the same strides.
        metrics: ``(outer * inner, len(METRICS))`` of the dtype of ``loss_scale``, or None; receives 0 in rows
            that are not read, and NaN where the call lacks what a metric needs (labels, a teacher).
        shards: set if the columns are this process's part of a larger vocabulary.
    """

    student: Tensor
    teacher: Tensor | SparseRows | None
    labels: Tensor | None
    loss_scale: Tensor
    grad_scale: Tensor
    spec: LossSpec
    row_loss: Tensor
    grad_student: Tensor | None = None
    grad_teacher: Tensor | None = None
    metrics: Tensor | None = None
    shards: Shards | None = None
    upstream: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """``(rows,)`` bool: the rows that are read."""
        read = (self.loss_scale != 0) | (self.grad_scale != 0)
        return read if self.labels is None else read & (self.labels != self.spec.ignore_index)


class Weighing(NamedTuple):
    """How a reduction weighs the tokens: see :func:`fastkd.losses.reduction.row_scale`.

    Attributes:
        device, dtype: of the result.
        labels: ``(tokens,)`` int64, contiguous, or None; tokens labelled ``ignore_index`` get weight 0.
        token_weights: ``(tokens,)`` of any dtype, contiguous, or None for ones.
        divisor: a number, a 0-d tensor on the device, or None for the sum of the tokens' weights. All
            weights are divided by it, or are 0 where it is 0.
    """

    tokens: int
    device: torch.device
    dtype: torch.dtype
    labels: Tensor | None
    ignore_index: int
    token_weights: Tensor | None
    divisor: float | Tensor | None


def bad_labels(labels: Tensor, total: int | Tensor, ignore_index: int) -> Tensor:
    """``(rows,)`` bool: labels that are neither in ``[0, total)`` nor ignored."""
    return ((labels < 0) | (labels >= total)) & (labels != ignore_index)


class Backend(ABC):
    """Row-wise kernels over logits.

    Attributes:
        takes_upstream: whether its kernels multiply by :attr:`Call.upstream`; if not, torch does before them.
    """

    name: str
    takes_upstream = False

    @abstractmethod
    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        """Why this backend cannot run ``dtype`` on ``device``, and the remedy; None if it can."""

    def about_to_write(self, x: Tensor | None) -> None:
        """Announce that all of a large, newly allocated, contiguous ``x`` will be written."""
        return None

    def first_bad_label(self, labels: Tensor, total: int, ignore_index: int) -> int:
        """The first of ``(rows,)`` labels on the CPU that is neither in ``[0, total)`` nor ignored, or -1."""
        bad = bad_labels(labels, total, ignore_index)
        return int(bad.to(torch.int8).argmax()) if bool(bad.any()) else -1

    def takes_sparse(self, device: torch.device, entries: int, sharded: bool) -> bool:
        """Whether one launch computes all of a call with a sparse teacher of so many entries per row.

        On a device other than a CPU, that launch also finds the rows that are an error (a wrong label, an
        index outside the vocabulary, a repeated one, a mass above ``most_mass``) and makes their results
        NaN. If a backend does not take a call, its entries are checked and computed in torch, between two
        launches.
        """
        return False

    def row_weights(self, given: Weighing) -> Tensor | None:
        """``(given.tokens,)`` weights of a reduction, in one step, in a dtype that it can run.

        Returns:
            None where plain torch has to compute them.
        """
        return None

    def totals(
        self, row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """The sum of a call's losses and the means of its metrics, in one step: see
        :func:`fastkd.losses.reduction.totals`.

        Returns:
            None where plain torch has to compute them.
        """
        return None

    def rows(self, call: Call) -> None:
        """Fill the results of ``call``."""
        if isinstance(call.teacher, SparseRows) and call.teacher.class_temperature != 1.0:
            self._rows_of_classes(call, call.teacher)
        else:
            self._rows(call)

    def _rows_of_classes(self, call: Call, teacher: SparseRows) -> None:
        """As :meth:`rows`, but the student's entropy has another temperature than the call's spec."""
        entropy = None
        if call.metrics is not None:
            spec = call.spec._replace(temperature=teacher.class_temperature, kd_weight=0.0)
            scratch, found = torch.empty_like(call.row_loss), torch.empty_like(call.metrics)
            self.compute(
                replace(call, spec=spec, teacher=None, row_loss=scratch, metrics=found, grad_student=None)
            )
            entropy = found[:, METRICS.index("student_entropy")]
        self._rows(call)
        if entropy is not None and call.metrics is not None:
            call.metrics[:, METRICS.index("student_entropy")] = entropy

    def _rows(self, call: Call) -> None:
        if call.spec.kd_weight == 0 and call.metrics is not None and call.teacher is not None:
            # The loss does not contain the divergence, but the metrics do, so they need a call of their own.
            teacher = call.teacher if isinstance(call.teacher, Tensor) else replace(call.teacher, grad=None)
            self.compute(
                replace(
                    call,
                    spec=call.spec._replace(kd_weight=1.0),
                    teacher=teacher,
                    row_loss=torch.empty_like(call.row_loss),
                    grad_student=None,
                    grad_teacher=None,
                )
            )
            call = replace(call, metrics=None)
        self.compute(call)

    @abstractmethod
    def compute(self, call: Call) -> None:
        """Fill the results of ``call``; if ``spec.kd_weight`` is 0, the teacher need not be read."""

    @abstractmethod
    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        """``out[r] = grad[r] * factor[r]`` for ``(outer, inner, columns)`` tensors; ``out`` may be ``grad``.

        Each row is contiguous. ``factor`` is ``(outer * inner,)`` float32 or float64, of any stride. In
        place, a row whose factor is exactly 1 is left as it is.
        """
