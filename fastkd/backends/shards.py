"""A vocabulary sharded across the processes of a group: each has a range of columns, in rank order."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """The other processes' parts of a call's columns.

    Args:
        group: the process group.
        columns: the width of this process's shard.
        device: the device of its logits.
    """

    def __init__(self, group: dist.ProcessGroup, columns: int, device: torch.device) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # Filled on the device: the host would have to wait for a copy from its memory.
        widths = self.gather(torch.full((1,), columns, device=device))[:, 0]
        before = torch.arange(self.size, device=device) < self.rank
        self.first = (widths * before).sum()  # 0-d int64: the vocabulary's column that is column 0 here
        self.total = widths.sum()  # 0-d int64

    def gather(self, x: Tensor) -> Tensor:
        """``(size, *x.shape)``: every process's ``x``, in rank order."""
        x = x.contiguous()
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        # Called all_gather_single from torch 2.13 on.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(out, x, group=self.group)
        return out.view(self.size, *x.shape)

    def sum(self, x: Tensor) -> Tensor:
        """Every process's ``x``, added up in rank order: all processes get the same bits."""
        return self.gather(x).sum(0)

    def max(self, x: Tensor) -> Tensor:
        return self.gather(x).amax(0)

    def local(self, index: Tensor) -> Tensor:
        """Columns of the whole vocabulary, counted in this shard; outside ``[0, width)`` if not in it."""
        return index - self.first
