"""The base of all backends: runs a call as one launch, or as several with sums between them."""

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
    """A backend whose kernels run all sweeps over a row in one launch, or one phase per launch.

    Attributes:
        float64_records: whether records are float64; if not, they have the dtype of the arithmetic.
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

        - ``"all"`` fills the results of ``call``. The teacher is sparse only if :meth:`takes_sparse` allows
          it.
        - ``"statistics"`` writes ``record``: ``(rows, len(COLUMNS))`` in the records' dtype, zeros before,
          and rows that are not read stay zero.
        - ``"sums"`` reads ``record`` and writes its last two columns.
        - ``"distant"``, for a divergence that has distant rows, reads these two sums, which are now those of
          all shards, and in distant rows replaces them by the logarithms to base 2 of two others.
        - ``"finish"`` reads ``record`` and fills the results of ``call``.

        If ``call.spec.divergence`` is ``"off_support"``, the teacher is not read, the divergence's gradient
        with respect to ``s / T`` is ``coefficient[row] * q``, and the loss does not contain the divergence.
        If ``call.shards`` is set, a label outside the vocabulary belongs to another shard.
        """

    def compute(self, call: Call) -> None:
        if call.spec.kd_weight != 0 and isinstance(call.teacher, SparseRows) and not self._takes(call):
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

    def _takes(self, call: Call) -> bool:
        assert isinstance(call.teacher, SparseRows)
        entries = call.teacher.indices.shape[1]
        return self.takes_sparse(call.student.device, entries, call.shards is not None)

    def _statistics(self, call: Call) -> Tensor:
        """The records of all rows, combined over all shards."""
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
        # Reads the entries' logits before the gradient may overwrite them.
        support = sparse.Support(call, teacher)
        student_side = replace(call, spec=call.spec._replace(divergence="off_support"))
        record = self._statistics(student_side)
        found = sparse.divergence(call, teacher, support, record)
        self.launch(student_side, "finish", record, found.coefficient)
        sparse.complete(call, support, record, found)
