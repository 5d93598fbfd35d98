"""Quantised models: which of them can be trained, and what keeps their gradients right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastkd.trainer.config import DistillationConfig, plain

QUANTISED = "the student is quantised, and quantised weights do not learn"
QUANTISED_REMEDY = "set peft_config to train an adapter on them, or leave quantization_config out"


def check_trainable(model: Any, args: DistillationConfig) -> None:
    """Raise a ``ValueError`` if a student cannot be trained: a quantised one without an adapter, one whose
    quantisation has no gradient, or one with float16 weights under ``fp16``.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if getattr(model, "is_quantized", False) and not getattr(quantizer, "is_qat_trainable", False):
        if not any(getattr(model, name, False) for name in ("peft_config", "_hf_peft_config_loaded")):
            raise ValueError(f"{QUANTISED}: {QUANTISED_REMEDY}")
        if not getattr(quantizer, "is_trainable", False):
            method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "quantised")
            raise ValueError(
                f"a {plain(method)} student cannot be trained, with an adapter neither: quantise it with "
                "bitsandbytes instead"
            )
    if args.fp16 and any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad):
        raise ValueError(
            "fp16: true scales the gradients of float32 weights, and the student has float16 weights: leave "
            "dtype out of model_init_kwargs"
        )


def keep_differentiable(model: nn.Module) -> None:
    """Keep the 4-bit layers of bitsandbytes from changing to a form without a gradient.

    On some CPUs, a layer's first forward in eval mode packs its weight for a kernel that autograd does not
    know, and training after it would silently leave out every gradient that passes through the layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            module.state_dict()  # as a side effect, a packed weight is unpacked
