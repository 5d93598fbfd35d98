"""What the compiled backends share: a call as one launch, or as launches with sums between them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fastkd.backends import record as records, sparse
from fastkd.backends.base import Backend, Call, SparseRows

Phase = Literal["all", "statistics", "sums", "distant", "finish"]


class KernelBackend(Backend):
    """A backend whose kernels take a row through its sweeps, all at once or one at a time.

    Attributes:
        float64_records: whether records are float64, or of the arithmetic's dtype as elsewhere.
    """

    float64_records = False

    @abstractmethod
    def launch(
        self,
        call: Call,
        phase: Phase = "all",
        record: Tensor | None = None,
        coefficient: Tensor | None = None,
    ) -> None:
        """Run one phase of every row.

        ``"all"`` fills the results of ``call``; a backend that takes sparse teachers so says so by a
        ``_sparse`` of its own. ``"statistics"`` writes ``record`` (``(rows, len(COLUMNS))`` of the records'
        dtype; zeros before, and rows that are not read stay so); ``"sums"`` reads it and writes its last two
        columns; ``"distant"``, for a divergence that has distant rows, reads these sums over all shards and
        replaces them in such rows by the logarithms to base 2 of two others; ``"finish"`` reads it and fills
        the results of ``call``. Where ``call.spec.divergence`` is ``"off_support"`` the teacher is not read,
        the student's gradient of the divergence is ``coefficient[row] * q``, and the loss is without it. A
        label outside the vocabulary lies in another shard where ``call.shards`` is set.
        """

    def compute(self, call: Call) -> None:
        if isinstance(call.teacher, SparseRows) and call.spec.kd_weight != 0:
            self._sparse(call)
        elif call.shards is None:
            self.launch(call)
        else:
            record = self._statistics(call)
            if records.has_sums(call.spec):
                self.launch(call, "sums", record)
                record[:, -2:] = of_all = call.shards.sum(record[:, -2:])
                if records.has_distant(call.spec):
                    self.launch(call, "distant", record)
                    records.combine_distant(record, of_all, call.shards)
            self.launch(call, "finish", record)

    def _statistics(self, call: Call) -> Tensor:
        """The records of all rows, over all shards."""
        shape = (call.row_loss.numel(), len(records.COLUMNS))
        dtype = torch.float64 if self.float64_records else call.loss_scale.dtype
        record = torch.zeros(shape, dtype=dtype, device=call.student.device)
        self.launch(call, "statistics", record)
        if call.shards is not None:
            records.combine(record, call.spec, call.shards, call.metrics is not None)
        return record

    def _sparse(self, call: Call) -> None:
        teacher = call.teacher
        assert isinstance(teacher, SparseRows)
        # The entries' logits, before the gradient may overwrite them.
        support = sparse.Support(call, teacher)
        student_side = replace(call, spec=call.spec._replace(divergence="off_support"))
        record = self._statistics(student_side)
        found = sparse.divergence(call, teacher, support, record)
        self.launch(student_side, "finish", record, found.coefficient)
        sparse.complete(call, support, record, found)
