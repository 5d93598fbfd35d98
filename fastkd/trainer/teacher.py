"""The teacher's side: a source of distributions for a batch. Here, a model that runs beside the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastkd import HiddenTeacher
from fastkd.trainer.heads import LinearHead, find_linear_head, output_width


class LiveTeacher:
    """A causal language model, frozen in place and in eval mode.

    Not an ``nn.Module``, so that neither the optimizer, nor a checkpoint, nor a distributed wrapper of the
    student ever sees its weights.

    Args:
        model: the teacher.
        fused: hand out hidden states with the head where the head is linear, instead of logits.
    """

    def __init__(self, model: PreTrainedModel, fused: bool) -> None:
        self.model = model.requires_grad_(False).eval()
        self.columns = output_width(model)
        head = find_linear_head(model) if fused else None
        self.head = head if isinstance(head, LinearHead) else None

    def to(self, device: torch.device) -> None:
        """Follow the student, unless the teacher was placed (or quantised) when it was loaded."""
        if getattr(self.model, "hf_device_map", None) is None and not getattr(
            self.model, "is_quantized", False
        ):
            self.model.to(device)

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Any]) -> HiddenTeacher | Tensor:
        """The distributions at every position of ``inputs`` (``input_ids``, ``attention_mask``, ...).

        Returns:
            Hidden states ``(batch, length, H)`` with their head, or logits ``(batch, length, V)``.
        """
        if self.head is None:
            return self.model(**inputs, use_cache=False).logits
        return self.head.factors(self.head.hidden(inputs))
