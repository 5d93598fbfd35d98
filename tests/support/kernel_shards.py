"""Run one call of a kernel in phases, on shards of its columns."""

from __future__ import annotations

import itertools

import torch
from support.kernel_calls import KERNEL, call_of, results
from torch import Tensor

from fastkd.backends import record as records
from fastkd.backends.base import Call


class Halves:
    """A stand-in for :class:`fastkd.backends.shards.Shards` where all shards are in one process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.said: list[Tensor] = []

    def gather(self, x: Tensor) -> Tensor:
        if len(self.said) < self.size:
            self.said.append(x.clone())
            return torch.stack([x] * self.size)
        return torch.stack(self.said)


def in_shards(call: Call, widths: list[int]) -> list[Tensor]:
    """Run ``call`` in phases on shards of its columns, and put the results together again."""
    assert isinstance(call.teacher, Tensor)
    rows, metrics = call.row_loss.numel(), call.metrics is not None
    shards, calls, found = Halves(len(widths)), [], []
    for s, t, start in zip(
        call.student.split(widths, 2),
        call.teacher.split(widths, 2),
        itertools.accumulate([0, *widths]),
        strict=False,
    ):
        labels = None if call.labels is None else torch.where(call.labels == -100, -100, call.labels - start)
        # A label that belongs to another shard must not become -100, which would mark its row as ignored.
        labels = (
            labels if labels is None else torch.where((labels == -100) & (call.labels != -100), -101, labels)
        )
        calls.append(call_of(s, t, labels, call.spec._replace(vocab_size=s.shape[2]), metrics=metrics))
        calls[-1].shards = shards  # type: ignore[assignment]
        found.append(torch.zeros(rows, len(records.COLUMNS), dtype=torch.float64))
        KERNEL.launch(calls[-1], "statistics", found[-1])
    for heard in (False, True):
        for part in found:
            records.combine(part if heard else part.clone(), call.spec, shards, metrics)  # type: ignore[arg-type]
    if records.has_sums(call.spec):
        for part, record in zip(calls, found, strict=True):
            KERNEL.launch(part, "sums", record)
        total = torch.stack([record[:, -2:] for record in found]).sum(0)
        for record in found:
            record[:, -2:] = total
    if records.has_distant(call.spec):
        for part, record in zip(calls, found, strict=True):
            KERNEL.launch(part, "distant", record)
        again = Halves(len(widths))
        for heard in (False, True):
            for record in found:
                records.combine_distant(record if heard else record.clone(), total, again)  # type: ignore[arg-type]
    for part, record in zip(calls, found, strict=True):
        KERNEL.launch(part, "finish", record)
    for part in calls[1:]:
        assert part.row_loss.equal(calls[0].row_loss)
        assert part.metrics is None or part.metrics.allclose(calls[0].metrics, 0.0, 0.0, equal_nan=True)
    whole = [results(part) for part in calls]
    grads = [torch.cat([part[k] for part in whole], 2) for k in (1, 2)]
    return [whole[0][0], *grads, *whole[0][3:]]
