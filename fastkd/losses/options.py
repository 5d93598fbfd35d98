"""The keyword arguments that ``kd_loss`` and ``linear_kd_loss`` share."""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.backends import registry
from fastkd.losses import checks, reduction as reductions
from fastkd.spec import LossSpec


class Options(NamedTuple):
    """See :func:`fastkd.kd_loss` for the meaning of each."""

    kd_ratio: float = 1.0
    divergence: str = "forward_kl"
    beta: float | None = None
    alpha: float | None = None
    temperature: float = 1.0
    teacher_temperature: float | None = None
    t_squared: bool = True
    reduction: str = "mean"
    num_items: int | Tensor | None = None
    token_weights: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocab_size: int | None = None
    group: dist.ProcessGroup | None = None
    backend: str | None = None
    return_metrics: bool = False
    class_weights: Tensor | None = None
    teacher_columns: Tensor | None = None
    teacher_tail: str = "renormalize"

    def check(self, columns: int = -1) -> LossSpec:
        """Check everything that needs no tensors; return the :class:`LossSpec` for ``columns`` columns."""
        reductions.check(self.reduction, self.num_items)
        registry.check_name(self.backend)
        checks.one_of("teacher_tail", self.teacher_tail, ("renormalize", "bucket"))
        numbers = (
            self.kd_ratio,
            self.divergence,
            self.alpha,
            self.beta,
            self.temperature,
            self.teacher_temperature,
            self.t_squared,
            self.ignore_index,
            self.label_smoothing,
            self.z_loss,
            columns,
        )
        if not torch.compiler.is_compiling():
            # An unhashable value is a wrong one; row_spec raises the error that explains it.
            with contextlib.suppress(TypeError):
                return _known_spec(*numbers)
        return checks.row_spec(*numbers)


# A training run uses the same few settings again and again.
_known_spec = functools.lru_cache(maxsize=64, typed=True)(checks.row_spec)
