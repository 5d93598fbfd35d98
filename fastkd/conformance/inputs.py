"""Random tensors for the cases; a case's tensors depend on nothing but its seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call
from fastkd.conformance.oracle import Sparse
from fastkd.divergences import DIVERGENCES

IGNORED = -100
BATCH, LENGTH, VOCAB = 2, 5, 97


class Inputs:
    """Draws tensors on the CPU, so that they are the same on every device, and moves them."""

    def __init__(self, device: str = "cpu", seed: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(
        self, *shape: int, std: float = 2.0, dtype: torch.dtype = torch.float32, mean: float = 0.0
    ) -> Tensor:
        """Normal numbers, drawn in float64 and rounded once."""
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64) * std + mean
        return drawn.to(dtype).to(self.device)

    def labels(self, *shape: int, vocab: int = VOCAB) -> Tensor:
        return torch.randint(vocab, shape, generator=self._generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator).to(self.device)

    def pair(
        self,
        batch: int = BATCH,
        length: int = LENGTH,
        vocab: int = VOCAB,
        std: float = 2.0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Logits of a student and of a teacher that is unlike it."""
        shape = batch, length, vocab
        return self.normal(*shape, std=std, dtype=dtype), self.normal(*shape, std=std, dtype=dtype)

    def call(
        self, adapter: Adapter, student: Tensor, teacher: Tensor | Sparse, name: str, **options: Any
    ) -> Call:
        """A call with the divergence's default parameters, and with labels if the divergence needs them."""
        divergence = DIVERGENCES[name]
        if divergence.splits_label and options.get("labels") is None:
            vocab = options.get("vocab_size") or student.shape[-1]
            options["labels"] = self.labels(*student.shape[:-1], vocab=vocab)
        settings: dict[str, Any] = {
            "divergence": name,
            "alpha": divergence.default("alpha"),
            "beta": divergence.default("beta"),
            "reduction": adapter.reduction,
        }
        return Call(student, teacher, **settings | options)
