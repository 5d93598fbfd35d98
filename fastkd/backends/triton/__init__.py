"""Fused loss kernels in Triton, for any GPU it supports (and its interpreter, for tests)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends.base import Call, SparseRows, Weighing
from fastkd.backends.kernels import KernelBackend, Phase

_MISSING: str | None
try:
    import triton  # noqa: F401
except ImportError as error:  # Triton is not part of every build of torch
    _MISSING = f"Triton cannot be imported ({error}); run `pip install triton`"
else:
    from fastkd.backends.triton import compile_time

    _MISSING = compile_time.lacking
if _MISSING is None:
    from fastkd.backends.triton import host, launch, launch_small, launch_sparse

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend(KernelBackend):
    """One program per row, which sweeps over both sides twice, or three times if the divergence has sums."""

    name = "triton"
    takes_upstream = True

    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        if _MISSING is not None:
            return _MISSING
        if dtype is not None and dtype not in _DTYPES:
            return f"its kernels take float32, bfloat16 and float16, not {dtype}; use the reference backend"
        if device.type == "cpu" and not host.INTERPRETED:
            return "on a CPU it runs only in Triton's interpreter; set TRITON_INTERPRET=1 before the import"
        if device.type not in ("cpu", "cuda"):
            return f"it runs on NVIDIA and AMD GPUs, not on {device.type}; use the reference backend"
        return None

    def takes_sparse(self, device: torch.device, entries: int, sharded: bool) -> bool:
        # A shard's entries need the statistics of the other shards.
        return not sharded and 1 <= entries <= launch_sparse.MAX_ENTRIES

    def row_weights(self, given: Weighing) -> Tensor | None:
        return launch_small.row_weights(given)

    def totals(
        self, row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
    ) -> tuple[Tensor | None, Tensor | None] | None:
        return launch_small.totals(row_loss, metrics, loss_scale)

    def launch(
        self,
        call: Call,
        phase: Phase = "all",
        record: Tensor | None = None,
        coefficient: Tensor | None = None,
    ) -> None:
        if phase == "all" and call.spec.kd_weight != 0 and isinstance(call.teacher, SparseRows):
            launch_sparse.sparse_rows(call)
        else:
            launch.dense_rows(call, phase, record, coefficient)

    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        launch_small.scale_rows(grad, factor, out)
