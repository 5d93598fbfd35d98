"""Models and tokenizers from the names in a configuration."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from fastkd.trainer.config import DistillationConfig


def load_student(args: DistillationConfig) -> PreTrainedModel:
    """``model``, pretrained or from scratch, in float32: small updates vanish in 16-bit weights.

    The seed is set first, so the same configuration gives the same fresh weights.
    """
    set_seed(args.seed)
    if args.model_init == "scratch":
        config = _load("model", AutoConfig.from_pretrained, args.model)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _load("model", AutoModelForCausalLM.from_pretrained, args.model, dtype=torch.float32)


def load_teacher(args: DistillationConfig) -> PreTrainedModel:
    """``teacher`` as it was saved, or as ``teacher_model_init_kwargs`` says."""
    kwargs = args.teacher_model_init_kwargs or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"teacher_model_init_kwargs must be a mapping, not {kwargs!r}")
    return _load("teacher", AutoModelForCausalLM.from_pretrained, args.teacher, **kwargs)


def load_tokenizer(args: DistillationConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer; the teacher's where a student from scratch has none yet."""
    try:
        return _load("model", AutoTokenizer.from_pretrained, args.model)
    except ValueError as missing:
        if args.teacher is None or args.model is None:
            raise
        try:
            return _load("teacher", AutoTokenizer.from_pretrained, args.teacher)
        except ValueError:
            raise missing from None


def _load(field: str, load: Any, name: str | None, **kwargs: Any) -> Any:
    if name is None:
        raise ValueError(f"{field} is not set: give a directory or a hub id")
    try:
        return load(name, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{field} {name!r} could not be loaded: {reason}") from error
