"""Finds settings that would need less memory, each with the peak that it would reach."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from tqdm.auto import tqdm

from fastkd.runs.estimate.step import Shape, Step, checkpoints_activations, run_step
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import TeacherSource

# A setting that saves less than this fraction of the peak is not listed.
WORTH = 0.05


@dataclass(frozen=True)
class Remedy:
    """A change of settings that lowers the peak.

    Attributes:
        settings: the fields to set, with their values.
        peak: bytes at the peak with these settings.
        price: a phrase that states what the change costs.
    """

    settings: dict[str, Any]
    peak: int
    price: str


def remedies(
    args: DistillationConfig, step: Step, train: Shape, held_out: Shape | None, processes: int
) -> list[Remedy]:
    """The settings that reduce the peak, the cheapest first: those with almost no effect on the result, those
    that cost time, and those that change the result.
    """
    found = []
    candidates = list(_candidates(args, step))
    for settings, price in tqdm(candidates, desc="trying remedies", unit="setting", delay=3, leave=False):
        changed = copy.copy(args)
        for name, value in settings.items():
            setattr(changed, name, value)
        if "gradient_checkpointing" in settings and hasattr(changed, "activation_checkpointing"):
            changed.activation_checkpointing = True  # newer `transformers` read this name instead
        rows = replace(train, rows=changed.per_device_train_batch_size)
        held = None if held_out is None else replace(held_out, rows=changed.per_device_eval_batch_size)
        try:
            peak = run_step(changed, rows, held, processes).peak
        except ValueError:
            continue  # the model does not support this setting
        if peak < (1 - WORTH) * step.peak:
            found.append(Remedy(settings, peak, price))
    return found


def _candidates(args: DistillationConfig, step: Step) -> Iterator[tuple[dict[str, Any], str]]:
    evaluates = step.phase == "evaluation"
    if args.fused_head == "false" and args.task != "classification":
        yield {"fused_head": "auto"}, "the same loss"
    if evaluates and args.per_device_eval_batch_size > 1:
        half = args.per_device_eval_batch_size // 2
        yield {"per_device_eval_batch_size": half}, "the same result"
    rows = args.per_device_train_batch_size
    if rows > 1 and not evaluates:
        # Rounded up, since an odd batch cannot be halved exactly.
        again = -(-rows * args.gradient_accumulation_steps // (rows // 2))
        yield (
            {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": again},
            "the same result" if rows % 2 == 0 else "nearly the same batch",
        )
    live = TeacherSource.parse(args.teacher).is_model
    kwargs = args.teacher_model_init_kwargs if isinstance(args.teacher_model_init_kwargs, dict) else {}
    if live and step.teacher_itemsize > 2:
        yield (
            {"teacher_model_init_kwargs": {**kwargs, "dtype": "bfloat16"}},
            "the teacher's probabilities to three digits",
        )
    if not checkpoints_activations(args):
        yield {"gradient_checkpointing": True}, "about a third more time"
    if live and args.kd_ratio > 0 and args.lmbda == 0 and args.cross_tokenizer is None:
        yield {"teacher": "cache:DIR"}, "fastkd cache must run first; faster afterwards"
    if not args.bf16 and not args.fp16:
        yield {"bf16": True}, "arithmetic in 16 bits"
    if "adamw" in step.optim and "8bit" not in step.optim:
        yield {"optim": "adafactor"}, "another optimizer, other learning rates"
    if not args.peft_config and args.model_init == "pretrained" and find_spec("peft") is not None:
        yield {"peft_config": {"peft_type": "LORA", "r": 8}}, "only an adapter learns"
