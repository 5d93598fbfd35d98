"""Turns an op's arguments into a backend's call: checks the data, maps it to the shard, selects rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.backends.base import Backend, Call, SparseRows, bad_labels
from fastkd.backends.shards import Shards
from fastkd.spec import LossSpec

# With shards, the labels of ignored tokens and of columns in another shard. The caller's ignore_index cannot
# stay: a shard's own column numbers may collide with it.
IGNORED, ELSEWHERE = -100, -1


class Tokens:
    """The per-row inputs of one op call, checked and expressed in this process's columns.

    Args:
        labels: any shape, int64.
        indices: ``(..., K)`` of a sparse teacher, with its ``logprobs`` and ``tail``; None for logits.
        loss_scale: ``(rows,)``.
        upstream: a number or ``(rows,)``, the factor of the gradients of rows whose weight is not 0; or None.
        columns: width of this process's logits of the student.
        spec: ``vocab_size`` counts the columns that exist; with a group those of all shards, or -1 for all.
        group: name of the process group across which the columns are sharded, in rank order.
        runner: the backend that will run the call.
    """

    def __init__(
        self,
        labels: Tensor | None,
        indices: Tensor | None,
        logprobs: Tensor | None,
        tail: str | None,
        loss_scale: Tensor,
        upstream: Tensor | None,
        columns: int,
        spec: LossSpec,
        group: str | None,
        runner: Backend,
    ) -> None:
        self.spec, self.tail, self.class_temperature = spec, tail, 1.0
        if tail == "bucket":
            # The classes are formed at temperature 1; the student's temperature applies to them later.
            self.class_temperature = spec.temperature
            self.spec = spec._replace(temperature=1.0)
        self.loss_scale = loss_scale.contiguous()
        self.grad_scale, self.upstream = self.loss_scale, None
        self.labels = None if labels is None else labels.reshape(-1).contiguous()
        self.indices = self.logprobs = None
        if indices is not None and logprobs is not None:
            self.indices = indices.reshape(-1, indices.shape[-1]).long().contiguous()
            self.logprobs = logprobs.reshape(self.indices.shape).to(loss_scale.dtype).contiguous()
        self.shards = None
        total: int | Tensor = spec.vocab_size
        if group is not None:
            self.shards, total = self._shard(columns, group)
        self.most_mass = math.inf
        device, sharded = self.loss_scale.device, self.shards is not None
        checked = (
            self.indices is not None
            and device.type != "cpu"
            and runner.takes_sparse(device, self.indices.shape[1], sharded)
        )
        if upstream is not None and runner.takes_upstream and (checked or self.indices is None):
            self.upstream = upstream.expand(self.loss_scale.shape)
        elif upstream is not None:
            # A row of weight 0 has no gradient, even where the upstream gradient is infinite.
            scale = self.loss_scale
            self.grad_scale = (scale * upstream).masked_fill(scale == 0, 0.0)
        if checked:
            # One launch checks the rows and computes them. Each operator here would be one more.
            self.most_mass = self._most_mass(logprobs)
        else:
            if self.labels is not None:
                self._check_labels(self.labels, total, runner)
            self._refuse(self._bad_indices(total), self._index_error, total)
            self._refuse(self._bad_masses(self._most_mass(logprobs)), self._mass_error, total)
        if self.shards is not None:
            self._localise(self.shards)

    def _shard(self, columns: int, group: str) -> tuple[Shards, int | Tensor]:
        shards = Shards(_resolve(group), columns, self.loss_scale.device)
        if self.spec.vocab_size < 0:
            self.spec = self.spec._replace(vocab_size=columns)
            return shards, shards.total
        # The host needs this number, and no other, so on a GPU it waits for the device.
        here = min(max(self.spec.vocab_size - int(shards.first), 0), columns)
        total = self.spec.vocab_size
        self.spec = self.spec._replace(vocab_size=here)
        return shards, total

    def _localise(self, shards: Shards) -> None:
        if self.labels is not None:
            local = shards.local(self.labels)
            inside = (local >= 0) & (local < self.spec.vocab_size)
            local = torch.where(inside, local, ELSEWHERE)
            self.labels = torch.where(self.labels == self.spec.ignore_index, IGNORED, local)
            self.spec = self.spec._replace(ignore_index=IGNORED)
        if self.indices is not None:
            self.indices = shards.local(self.indices)

    @property
    def read(self) -> Tensor:
        """``(rows,)`` bool: the rows that are read."""
        read = self.loss_scale != 0
        if self.grad_scale is not self.loss_scale:
            read = read | (self.grad_scale != 0)
        return read if self.labels is None else read & (self.labels != self.spec.ignore_index)

    def _check_labels(self, labels: Tensor, total: int | Tensor, runner: Backend) -> None:
        if labels.device.type == "cpu":
            token = runner.first_bad_label(labels, int(total), self.spec.ignore_index)
            if token >= 0:
                raise IndexError(
                    f"label {int(labels[token])} at token {token} is outside [0, {int(total)}) and is not "
                    f"ignore_index ({self.spec.ignore_index}): mask it with ignore_index or check the "
                    "tokenizer against vocab_size"
                )
        elif self.shards is not None or self.indices is not None:
            # Without shards a dense call needs no check here: the kernels make the row NaN, see Call.
            bad = bad_labels(labels, total, self.spec.ignore_index)
            self._refuse(bad, self._index_error, total)

    def _bad_indices(self, total: int | Tensor) -> Tensor | None:
        if self.indices is None or self.logprobs is None or self.spec.kd_weight == 0:
            return None
        present = self.read[:, None] & ~torch.isneginf(self.logprobs)
        # Absent entries get distinct numbers below 0, so that they never count as repeated.
        absent = torch.arange(-self.indices.shape[1], 0, device=self.indices.device)
        order = torch.where(present, self.indices, absent).sort(-1).values
        repeated = (order[:, 1:] == order[:, :-1]).any(-1)
        outside = present & ((self.indices < 0) | (self.indices >= total))
        return outside.any(-1) | repeated

    def _most_mass(self, given: Tensor | None) -> float:
        """The largest sum of a row's probabilities that is accepted, given the caller's log-probabilities."""
        if self.tail != "bucket" or given is None or self.spec.kd_weight == 0:
            return math.inf
        # A logarithm's rounding grows with its size; this tolerance is far above its effect on a mass of 1.
        return 1 + math.sqrt(torch.finfo(given.dtype).eps)

    def _bad_masses(self, most: float) -> Tensor | None:
        """``(rows,)`` bool, rows whose probabilities sum to more than ``most``."""
        if most == math.inf or self.logprobs is None:
            return None
        return self.read & (self.logprobs.exp().sum(-1) > most)

    def _refuse(
        self,
        bad: Tensor | None,
        error: Callable[[int, int | Tensor], Exception],
        total: int | Tensor,
    ) -> None:
        """Raise on a CPU. Elsewhere the host would have to wait, so make the rows' results NaN."""
        if bad is None:
            return
        if bad.device.type == "cpu":
            if bool(bad.any()):
                raise error(int(bad.nonzero()[0, 0]), total)
            return
        self.loss_scale = torch.where(bad, torch.nan, self.loss_scale)
        self.grad_scale = torch.where(bad, torch.nan, self.grad_scale)

    def _index_error(self, token: int, total: int | Tensor) -> Exception:
        assert self.indices is not None and self.logprobs is not None
        present = self.indices[token][~torch.isneginf(self.logprobs[token])]
        outside = present[(present < 0) | (present >= total)]
        if outside.numel():
            return IndexError(
                f"SparseTeacher index {int(outside[0])} at token {token} is outside [0, {int(total)}): give "
                "entries that do not exist the log-probability -inf, or check the teacher's tokenizer "
                "against vocab_size"
            )
        values, counts = present.unique(return_counts=True)
        return ValueError(
            f"SparseTeacher repeats index {int(values[counts > 1][0])} at token {token}: merge the entries "
            "of one column (logsumexp of their log-probabilities), or give the others the log-probability "
            "-inf"
        )

    def _mass_error(self, token: int, total: int | Tensor) -> Exception:
        assert self.logprobs is not None
        return ValueError(
            f"the probabilities of SparseTeacher at token {token} sum to "
            f"{float(self.logprobs[token].exp().sum()):g}, and tail='bucket' asks for those of columns of "
            "a whole vocabulary, at most 1: pass log_softmax(logits) of all columns gathered at the "
            "indices, or tail='renormalize' or 'drop'"
        )

    def call(
        self,
        start: int,
        stop: int,
        student: Tensor,
        teacher: Tensor | None,
        row_loss: Tensor,
        grad_student: Tensor | None,
        grad_teacher: Tensor | None,
        metrics: Tensor | None,
    ) -> Call:
        """The rows ``[start, stop)``, which ``student`` and ``teacher`` hold as ``(outer, inner, columns)``.

        ``teacher`` is None without a teacher, and for a sparse one, whose ``grad_teacher`` is ``(rows, K)``
        in the dtype of the arithmetic.
        """
        whole = start == 0 and stop == row_loss.shape[0]

        def of(x: Tensor) -> Tensor:
            return x if whole else x[start:stop]

        source: Tensor | SparseRows | None = teacher
        if self.indices is not None and self.logprobs is not None:
            assert self.tail is not None
            entries = of(self.indices), of(self.logprobs)
            source = SparseRows(*entries, self.tail, self.class_temperature, grad_teacher, self.most_mass)
            grad_teacher = None
        return Call(
            student=student,
            teacher=source,
            labels=None if self.labels is None else of(self.labels),
            loss_scale=of(self.loss_scale),
            grad_scale=of(self.grad_scale),
            spec=self.spec,
            row_loss=of(row_loss),
            grad_student=grad_student,
            grad_teacher=grad_teacher,
            metrics=None if metrics is None else of(metrics),
            shards=self.shards,
            upstream=None if self.upstream is None else of(self.upstream),
        )


def _resolve(group: str) -> dist.ProcessGroup:
    # An op can take a group's name, and torch.compile trace it, as in torch's functional collectives.
    from torch.distributed import distributed_c10d

    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    found: dist.ProcessGroup = resolve(group)
    return found
